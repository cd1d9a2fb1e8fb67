#!/usr/bin/env python3
"""Two kernels, one image: two guests map the same physical memory and read the image in it.

    two.py [SHAPE...]       soft-reserved, physical, ivshmem, cxl (shapes.py); all of them if none is named
    two.py --note FILE ...  tell FILE of guests that died
    two.py --available      only say whether they could run here, fetching kernel and emulator if need be

Guests of one boot have as many of the shapes as go together (PAIRS). When one of them dies, that is no failed test: the
shapes of its pair are run once more in other guests, and FILE is told. For each shape:
  * the image is packed, by this machine or by a guest, and both guests read it: every file and tensor has the bytes
    that this machine packed, and `daxfs verify` agrees;
  * both guests mount it by FUSE: the files have the same bytes, and a program runs from there;
  * what guest A stores is seen by guest B and here, so the memory is one; a reader cannot write to it in any way, and
    guest B, whose emulator has the memory read-only, not even as root with a writable mapping;
  * the image is replaced while both guests read it, by a guest and by this machine, beside the old one and in its
    place: what passes for valid is one image, whole, and both guests get to see the last one;
  * where the memory is a devdax device, the library's own tests of those run on it;
  * what cannot be opened is refused with advice.

Exit status: 0 passed, 1 failed, 77 the tests could not be run on this machine (the reason is printed). A shape that
cannot be had here is left out, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import emulator
from models import Model, make_model
from packages import UnavailableError
from peer import Peer, PeerError, in_guest, on_this_machine
from shapes import PAIRS, SHAPES, Pair, Shape
from vm import GuestDiedError, check_requirements, twice

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
FAILED, NOT_RUN = 1, 77
# Seconds that one command may take; they take a few, unless the machine is busy with other things.
PATIENCE = 300
PAGE = 4096


class FailedError(Exception):
    """Something was not as it has to be."""


def check(condition: object, what: str) -> None:
    if not condition:
        raise FailedError(what)


@dataclass
class Programs:
    """What runs here and in the guests."""

    # The commands, and the guests' program.
    folder: Path
    # The tests of devices.
    devices: Path


def build() -> Programs:
    """Optimised: emulation is slow enough."""
    command = ["cargo", "build", "--locked", "--release", "--message-format=json-render-diagnostics"]
    command += ["-p", "daxfs-cli", "-p", "mkimage", "-p", "daxfs-tests", "--bins", "-p", "dmabuf", "--test", "devices"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(FAILED)
    messages = map(json.loads, done.stdout.splitlines())
    found = {m["target"]["name"]: Path(m["executable"]) for m in messages if m.get("executable")}
    return Programs(found["two_kernels"].parent, found["devices"])


class Images:
    """Models to pack, with what a reader of each has to find. The last one differs from the first in bytes only."""

    def __init__(self, rows: int, work: Path, programs: Path, host: Peer) -> None:
        self.programs = programs
        work.mkdir()
        sizes = (rows, rows * 3 // 2, rows)
        self.models = [make_model(work / f"model-{i}", i, size) for i, size in enumerate(sizes)]
        # Bytes of the image of the first and of the last model, in whole pages.
        self.length = 0
        self.reports = [self.report(model, work, host) for model in self.models]

    def report(self, model: Model, work: Path, host: Peer) -> dict:
        """What `report` has to answer: the hashes are taken of the files on the disk."""
        pieces = work / f"{model.folder.name}-tensors"
        pieces.mkdir()
        for name, (_, _, data) in model.tensors.items():
            (pieces / name).write_bytes(data)
        hashes = host.ask("hash-tree", folder=str(pieces))
        tensors = {name: [dtype, shape, hashes[f"/{name}"]] for name, (dtype, shape, _) in model.tensors.items()}
        command = [str(self.programs / "daxfs-pack"), "--json", "--exact", str(model.folder), "-o", f"{pieces}.daxfs"]
        packed = json.loads(host.run(*command))
        self.length = -(-packed["image_bytes"] // PAGE) * PAGE
        return {
            "content_hash": packed["content_hash"],
            "files": host.ask("hash-tree", folder=str(model.folder)),
            "tensors": tensors,
        }

    def pack(self, which: int, target: str, *more: str) -> list[str]:
        """Command that packs a model into memory."""
        line = [str(self.programs / "daxfs-pack"), "--json", "--exact", "--verify", str(self.models[which].folder)]
        return [*line, "--into", target, *more]


@contextlib.contextmanager
def common_memory(size: int):
    """A file of this machine's memory."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="daxfs-two-kernels-") as file:
        file.truncate(size)
        yield Path(file.name)


@dataclass
class Test:
    """One shape: two guests and this machine over one memory."""

    shape: Shape
    images: Images
    # The file on this machine.
    memory: Path
    # Guest A and guest B, whose emulator has the memory read-only.
    guests: list[Peer]
    # The tests of devices.
    devices: Path

    def run(self) -> None:
        b = self.guests[1]
        # The part has room for one image and not for two.
        whole, part = (0, self.shape.size), (self.shape.size // 2, self.images.length)
        print("  packed by guest A, read by both", flush=True)
        self.pack("guest A", whole, 0)
        self.read_by_both(whole, 0)
        verify = b.start("run", command=[str(self.images.programs / "daxfs"), "verify", self.shape.source])
        print("  mounted by FUSE in both", flush=True)
        self.mounted_by_both(0)
        print("  read-only", flush=True)
        self.one_memory()
        self.no_writes()
        done = verify.get()
        check(done["status"] == 0, f"daxfs verify in guest B: {done}")
        if self.shape.source.startswith("/dev/dax"):
            print("  tests of devdax", flush=True)
            self.devdax()

        print("  replaced while both read, the old image stays", flush=True)
        self.replace(whole, {0: 0}, [("guest A", 1)], stays=True)
        self.replace(whole, {1: 1}, [("this machine", which) for which in (2, 0, 2, 0, 2)], stays=False)
        print("  replaced while both read, in the place of the old image", flush=True)
        self.pack("this machine", part, 0)
        self.read_by_both(part, 0)
        self.replace(part, {0: 0}, [("guest A", 2)], stays=False)
        self.replace(part, {1: 2}, [("this machine", which) for which in (0, 2, 0)], stays=False)
        if self.shape.refused:
            print("  refused with advice", flush=True)
            self.refusals()

    def pack(self, packer: str, place: tuple[int, int], which: int, *more: str) -> dict:
        """Pack a model into a part of the memory, given by offset and length."""
        if packer == "guest A":
            return json.loads(self.guests[0].run(*self.images.pack(which, self.shape.part(*place), *more)))
        with self.memory.open("r+b") as file:
            target = "fd:{}@{}+{}".format(file.fileno(), *place)
            command = self.images.pack(which, target, *more)
            done = subprocess.run(command, pass_fds=[file.fileno()], capture_output=True, text=True, check=False)
        check(done.returncode == 0, f"`{' '.join(command)}` here: {done.stderr}")
        return json.loads(done.stdout)

    def read_by_both(self, place: tuple[int, int], which: int) -> None:
        """Both guests open the image and find what was packed."""
        for answer in [guest.start("open", source=self.shape.part(*place)) for guest in self.guests]:
            opened = answer.get()
            expected = {"len": place[1], "provenance": "shared", "class": self.shape.memory_class}
            check(opened == expected, f"{answer.peer.name} opened {opened}, expected {expected}")
        for answer in [guest.start("report") for guest in self.guests]:
            self.same(answer.get(), self.images.reports[which], answer.peer.name)

    def mounted_by_both(self, which: int) -> None:
        """The image as a root file system, in each guest out of the common memory."""
        programs = self.images.programs
        point = "/run/image"
        script = f"mkdir -p {point} && {programs}/daxfs mount --as fuse {self.shape.source} {point}"
        # A program of the image, which sees nothing but the image.
        inside = f"chroot {point} /bin/busybox sh -c '/bin/busybox cat /config.json'"
        for answer in [guest.start("run", command=["sh", "-c", script]) for guest in self.guests]:
            done, who = answer.get(), answer.peer.name
            check(done["status"] == 0, f"`{script}` in {who}: {done}")
        for answer in [guest.start("hash-tree", folder=point) for guest in self.guests]:
            found = {name: hash for name, hash in answer.get().items() if not name.startswith("/.daxfs/")}
            self.same({"files": found}, {"files": self.images.reports[which]["files"]}, answer.peer.name)
        config = (self.images.models[which].folder / "config.json").read_text()
        for guest in self.guests:
            check(guest.run("sh", "-c", inside) == config, f"a program of the image in {guest.name} reads another file")
            guest.run("umount", point)

    def same(self, found: dict, expected: dict, who: str) -> None:
        for part, contents in expected.items():
            check(found[part] == contents, f"{part} in {who}: {found[part]}\nexpected {contents}")

    def word(self, offset: int) -> int:
        with self.memory.open("rb") as file:
            file.seek(offset)
            return int.from_bytes(file.read(8), "little")

    def one_memory(self) -> None:
        """A store in guest A, behind the image, is seen by guest B and here."""
        a, b = self.guests
        at = self.shape.size - PAGE
        check(a.ask("store", source=self.shape.source, offset=at, value=0xA11CE) == 0xA11CE, "guest A lost its store")
        check(b.ask("load", offset=at) == 0xA11CE, "guest B does not see the store of guest A")
        check(self.word(at) == 0xA11CE, "this machine does not see the store of guest A")

    def no_writes(self) -> None:
        """Readers cannot write, and guest B not even as root."""
        for answer in [guest.start("write-as-reader") for guest in self.guests]:
            done = answer.get()
            check(not done["allowed"] and not done["changed"], f"a reader in {answer.peer.name} could write: {done}")
        b = self.guests[1]
        for at in (0, self.shape.size - PAGE + 8):
            before = self.word(at)
            with contextlib.suppress(PeerError):
                found = b.ask("store", source=self.shape.source, offset=at, value=0xBAD)
                check(found == before, f"guest B reads {found:#x} at {at:#x} after its store")
            check(self.word(at) == before, f"guest B has written to read-only memory at {at:#x}")

    def replace(
        self, place: tuple[int, int], packed: dict[int, int], steps: list[tuple[str, int]], *, stays: bool
    ) -> None:
        """Other images are packed while both guests read the one before.

        `packed` is the generation that is there, and which model it holds; `steps` are packers and models. With
        `stays`, readers of the old image keep its bytes.
        """
        (first,) = packed
        last = first + len(steps)
        watching = [guest.start("watch", until=last) for guest in self.guests]
        for number, (packer, which) in enumerate(steps, first + 1):
            summary = self.pack(packer, place, which, "--replace")
            packed[number] = which
            check(summary["generation"] == number, f"generation {summary['generation']}, expected {number}")
            fits_beside = place[1] > self.images.length
            check(summary["keeps_previous"] == fits_beside, f"the old image was kept or not: {summary}")
        for answer in watching:
            done, who = answer.get(), answer.peer.name
            for report in done["seen"]:
                number = report["generation"]
                check(number in packed, f"{who} read an image that nobody packed: {report}")
                self.same(report, self.images.reports[packed[number]], f"generation {number} in {who}")
            numbers = [report["generation"] for report in done["seen"]]
            check(numbers == sorted(set(numbers)), f"{who} saw generations {numbers}")
            check(numbers[-1] == last, f"{who} saw generations {numbers}, but not {last}")
            check(not done["first_is_current"], f"{who} takes the image that was replaced for the current one")
            check(done["kept"] or not stays, f"{who} lost the bytes of the image that it had open")

    def devdax(self) -> None:
        """What the library says of devdax and maps of it, which no other test has at hand."""
        command = ["env", "DAXFS_REQUIRE_DEVDAX=1", str(self.devices), "devdax"]
        output = self.guests[0].run(*command)
        check(" 1 passed" in output, f"`{' '.join(command)}`: {output}")

    def refusals(self) -> None:
        """What cannot be opened is an error that says why, and exit status 2."""
        for script, advice in self.shape.refused.items():
            self.refused(script, advice)
        if self.shape.unbind:
            b = self.guests[1]
            check(b.ask("is-current"), "guest B takes its image for outdated")
            self.refused(self.shape.unbind, "a driver, and none is bound")
            check(not b.ask("is-current"), "guest B takes an image for current whose memory is gone")

    def refused(self, script: str, advice: str) -> None:
        command = ["sh", "-c", f"PATH={self.images.programs}:$PATH; {script}"]
        done = self.guests[1].ask("run", command=command)
        check(done["status"] == 2 and advice in done["stderr"], f"`{script}`: {done}, expected {advice!r}")


def run(  # noqa: PLR0913, PLR0917
    pair: Pair, shapes: list[Shape], work: Path, programs: Programs, host: Peer, results: dict[str, str]
) -> None:
    """Everything about some shapes of a pair of guests, in one boot.

    What became of each is in `results` as soon as it is known: it stays when the guests die later. What has failed
    stays failed, whatever other guests make of it.
    """
    program = programs.folder / "two_kernels"
    with contextlib.ExitStack() as stack:
        memories = {shape.name: stack.enter_context(common_memory(shape.size)) for shape in pair.shapes}
        guests = []
        for name, read_only in (("guest A", False), ("guest B", True)):
            guest = pair.make_guest(memories, read_only=read_only, timeout=PATIENCE * len(shapes))
            guests.append(stack.enter_context(in_guest(name, guest, program, PATIENCE)))
        for shape in shapes:
            print(f"two.py: {shape.name}", flush=True)
            start = time.monotonic()
            images = Images(shape.rows, work / shape.name, programs.folder, host)
            try:
                Test(shape, images, memories[shape.name], guests, programs.devices).run()
                result = "passed"
            except FailedError as error:
                print(f"two.py: {shape.name}: {error}", file=sys.stderr, flush=True)
                result = "FAILED"
            if not results.get(shape.name, "").startswith("FAILED"):
                results[shape.name] = f"{result} after {time.monotonic() - start:.0f} s"


def run_pair(pair: Pair, shapes: list[Shape], programs: Programs, note: Callable[[str], None]) -> dict[str, str]:
    """As run, with other guests in place of those that died."""
    results: dict[str, str] = {}

    def boot() -> int:
        with (
            tempfile.TemporaryDirectory(prefix="daxfs-two-kernels-") as work,
            on_this_machine(programs.folder / "two_kernels", PATIENCE) as host,
        ):
            run(pair, shapes, Path(work), programs, host, results)
        return 0

    start, used = time.monotonic(), cpu_seconds()
    try:
        twice(boot, note)
    except (GuestDiedError, PeerError) as error:
        print(f"two.py: {error}", file=sys.stderr, flush=True)
        for shape in shapes:
            if not results.get(shape.name, "").startswith("FAILED"):
                results[shape.name] = "FAILED: its guests ended"
    # On a machine that does other things, too, the second number says more.
    spent = f"{time.monotonic() - start:.0f} s, {cpu_seconds() - used:.0f} s of processor time"
    print(f"two.py: {' '.join(shape.name for shape in shapes)}: {spent}", flush=True)
    return results


def cpu_seconds() -> float:
    """Processor time of the emulators and commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--available", action="store_true", help="build and run nothing")
    parser.add_argument("--note", type=Path, metavar="FILE", help="where to write what a summary should tell")
    names = [shape.name for shape in SHAPES]
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(names)}")
    a = parser.parse_args()
    if unknown := set(a.shapes) - set(names):
        parser.error(f"{' '.join(sorted(unknown))}: not one of {' '.join(names)}")
    missing = {}
    try:
        check_requirements()
    except UnavailableError as why:
        print(f"not run: {why}")
        return NOT_RUN
    try:
        emulator.with_cxl()
    except UnavailableError as why:
        missing["cxl"] = f"not run: {why}"
        print(f"cxl not run: {why}", flush=True)
    if a.available:
        return 0

    programs = build()
    os.chdir(ROOT)
    results, notes = {}, []
    for pair in PAIRS:
        shapes = [shape for shape in pair.shapes if not a.shapes or shape.name in a.shapes]
        for shape in shapes:
            if why := missing.get(shape.name):
                results[shape.name] = why
        shapes = [shape for shape in shapes if shape.name not in missing]
        if not shapes:
            continue
        results.update(run_pair(pair, shapes, programs, notes.append))
    if notes and a.note:
        a.note.write_text("; ".join(notes))
    for name, result in results.items():
        print(f"two.py: {name}: {result}")
    if all(result.startswith("not run") for result in results.values()):
        return NOT_RUN
    return FAILED if any(result.startswith("FAILED") for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
