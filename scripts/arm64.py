#!/usr/bin/env python3
"""Runs test programs for Arm under emulation, and tells what cannot pass there from what is wrong.

    arm64.py run BUILT KNOWN [NAME...]       under the emulator of programs, one program after the other
    arm64.py init BUILT FOLDER [NAME...]     put the programs into a guest's first file system, with a list of them
    arm64.py read BUILT KNOWN LOG [NAME...]  what that guest printed
    arm64.py kernel                          the folder with a kernel of 64 KiB pages, fetched where it is not there

BUILT is what `cargo build --tests --message-format json` printed. NAME is a package or FOLDER/PROGRAM, where * stands
for anything; without names all programs are meant. KNOWN has a line for each test that cannot pass there: program,
test, and why; in both names * stands for anything. A test that fails and is not there is a failure; one that is there
and passes is said, so that the list shrinks. The status is 1 if any failed.

Debian has kernels of 4 and 16 KiB pages for Arm, Ubuntu one of 64 KiB. DAXFS_UBUNTU_MIRROR is another mirror to fetch
it from; its hash is known.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cache

# A program that hangs is ended; the slowest, tests/cuda, takes more than twenty minutes on two busy processors.
LIMIT = 3600
THREADS = 2
RESULT = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", re.MULTILINE)
WHOLE = re.compile(r"^test result:", re.MULTILINE)
# Of a release as it came out, which keeps its files: Ubuntu 26.04.
KERNEL = "pool/main/l/linux/linux-image-unsigned-7.0.0-14-generic-64k_7.0.0-14.14_arm64.deb"
KERNEL_SHA256 = "67c5170a8f830ad5f1f048dc38f0cc0db9884170ab0518aebb2bffdb3ede9b9a"
UBUNTU = "http://archive.ubuntu.com/ubuntu"


@dataclass(frozen=True)
class Program:
    """A test program, and the folder that cargo would start it in."""

    name: str
    path: str
    folder: Path
    package: str

    @property
    def label(self) -> str:
        """The package's folder and the program's name."""
        return f"{self.folder.name}/{self.name}"

    def is_one_of(self, name: str) -> bool:
        """Say whether a name of the command line means this program: a package's, or a pattern of labels."""
        return name == self.package or fnmatch.fnmatchcase(self.label, name)


@dataclass(frozen=True)
class Known:
    """What cannot pass in this place."""

    program: str
    test: str
    reason: str


@dataclass
class Sums:
    """What all programs together did."""

    known: list[Known]
    passed: int = 0
    failed: int = 0
    excused: int = 0
    ignored: int = 0
    notes: list[str] = field(default_factory=list)

    def reason(self, label: str, test: str) -> Known | None:
        """Return the line that says why a test cannot pass."""
        match = fnmatch.fnmatchcase
        return next((row for row in self.known if match(label, row.program) and match(test, row.test)), None)

    def add(self, label: str, output: str, ended: str) -> None:
        """Count a program's results. `ended` says how it ended, which matters if it was not by itself."""
        results = dict(RESULT.findall(output))
        if not WHOLE.search(output):
            results[f"(the program {ended or 'printed no result'})"] = "FAILED"
        bad = []
        for test, result in sorted(results.items()):
            row = self.reason(label, test)
            if result == "ignored":
                self.ignored += 1
            elif result == "ok":
                self.passed += 1
                if row and "*" not in row.program + row.test:
                    self.notes.append(f"{label} {test} passes: {row.reason}")
            elif row:
                self.excused += 1
                print(f"    not possible here: {label} {test}: {row.reason}")
            else:
                bad.append(test)
        if bad:
            self.failed += len(bad)
            print(output)
            print(f"FAILED in {label}: {', '.join(bad)}")
        print(f"{label}: {len(results)} tests", flush=True)

    def report(self) -> int:
        """Print the sums, and return the status."""
        print("".join(f"\nnote: {note}" for note in self.notes))
        print(f"{self.excused} tests cannot pass here, by name; {self.ignored} are ignored")
        print(f"\n{self.passed} passed, {self.failed} failed, {self.excused} skipped")
        return 1 if self.failed or not self.passed else 0


def programs(built: Path, names: tuple[str, ...]) -> list[Program]:
    """Return the test programs in cargo's messages, those that some name means or all."""
    found = []
    for line in built.read_text().splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable") and message["profile"]["test"]:
            name = message["target"]["name"]
            folder = Path(message["manifest_path"]).parent
            # URL#VERSION where the folder has the package's name, URL#NAME@VERSION elsewhere.
            package, at, _ = message["package_id"].rpartition("#")[2].partition("@")
            found.append(Program(name, message["executable"], folder, package if at else folder.name))
    if missing := [name for name in names if not any(program.is_one_of(name) for program in found)]:
        raise SystemExit(f"arm64.py: no tests of {', '.join(missing)}")
    return sorted(
        (program for program in found if not names or any(map(program.is_one_of, names))),
        key=lambda program: program.label,
    )


def known(path: Path) -> list[Known]:
    """Read the list."""
    lines = (line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#"))
    return [Known(*line.split(maxsplit=2)) for line in lines]


def emulate(program: Program) -> tuple[str, str]:
    """Run a program as cargo would; return its output and how it ended."""
    environment = {
        **os.environ,
        "CARGO_MANIFEST_DIR": str(program.folder),
        "RUST_BACKTRACE": "0",
        "DAXFS_TEST_DEADLINE": str(LIMIT),
    }
    try:
        done = subprocess.run(  # noqa: S603
            [program.path, f"--test-threads={THREADS}"],
            cwd=program.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        return (expired.stdout or b"").decode(errors="replace"), f"was ended after {LIMIT} s"
    return done.stdout.decode(errors="replace"), f"ended with status {done.returncode}"


def run(built: Path, rows: Path, *names: str) -> int:
    """Run all under the emulator of programs."""
    sums = Sums(known(rows))
    for program in programs(built, names):
        start = time.monotonic()
        output, ended = emulate(program)
        sums.add(program.label, output, ended)
        print(f"    {time.monotonic() - start:.0f} s", flush=True)
    return sums.report()


def init(built: Path, folder: Path, *names: str) -> int:
    """Lay the programs out for a guest, without their debugging information, each where it was built."""
    lines = []
    wanted = programs(built, names)
    for program in wanted:
        target = folder / program.path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["aarch64-linux-gnu-strip", "-o", target, program.path], check=True)  # noqa: S603, S607
        lines.append(f"{program.label} {program.folder} {program.path}\n")
    # The commands and examples, which the tests start.
    for path in {Path(program.path).parents[1] for program in wanted}:
        for file in path.iterdir():
            if file.is_file() and os.access(file, os.X_OK):
                subprocess.run(  # noqa: S603
                    ["aarch64-linux-gnu-strip", "-o", folder / str(file).lstrip("/"), file],  # noqa: S607
                    check=True,
                )
    (folder / "programs").write_text("".join(lines))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{len(lines)} programs, {size >> 20} MiB; {shutil.disk_usage(folder).free >> 20} MiB free")
    return 0


def printed(log: str) -> Iterator[tuple[str, str, str]]:
    """Cut what a guest printed into programs: label, output, how it ended."""
    for part in re.split(r"^=== program ", log, flags=re.MULTILINE)[1:]:
        label, _, rest = part.partition("\n")
        output, _, ended = rest.partition("=== ended with status ")
        yield label, output, f"ended with status {ended.split()[0]}" if ended else "did not end"


def read(built: Path, rows: Path, log: Path, *names: str) -> int:
    """Count what a guest printed. Programs that it did not get to have failed."""
    sums = Sums(known(rows))
    seen = set()
    # The console ends lines with CR, too.
    for label, output, ended in printed(log.read_text(errors="replace").replace("\r", "")):
        seen.add(label)
        sums.add(label, output, ended)
    for program in programs(built, names):
        if program.label not in seen:
            sums.add(program.label, "", "was not started: the guest ended before")
    return sums.report()


def unpack_kernel(folder: Path) -> None:
    """Put the kernel into an empty folder, as `Image`, which every emulator starts."""
    url = f"{os.environ.get('DAXFS_UBUNTU_MIRROR', UBUNTU)}/{KERNEL}"
    print(f"arm64.py: fetching {url} (17 MB), once", file=sys.stderr, flush=True)
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310
        package = answer.read()
    found = hashlib.sha256(package).hexdigest()
    if found != KERNEL_SHA256:
        raise SystemExit(f"arm64.py: {url} has the SHA-256 {found}, not {KERNEL_SHA256}")
    (folder / "kernel.deb").write_bytes(package)
    subprocess.run(["dpkg", "-x", folder / "kernel.deb", folder / "package"], check=True)  # noqa: S603, S607
    # A program for EFI, which unpacks the kernel that it holds; where, its header says.
    program = next(folder.glob("package/boot/vmlinuz-*")).read_bytes()
    magic, start, size, kind = struct.unpack_from("<4x4sII8x4s", program)
    if (magic, kind) != (b"zimg", b"zstd"):
        raise SystemExit(f"arm64.py: the kernel of {url} is packed in a way that is not known here")
    packed = program[start : start + size]
    image = subprocess.run(["zstd", "-dcq"], input=packed, stdout=subprocess.PIPE, check=True).stdout  # noqa: S607
    shutil.rmtree(folder / "package")
    (folder / "kernel.deb").unlink()
    (folder / "Image").write_bytes(image)


def kernel() -> int:
    """Print where the kernel of 64 KiB pages is."""
    print(cache.made("arm64", "kernel-64k", [KERNEL_SHA256.encode()], unpack_kernel))
    return 0


def main(arguments: list[str]) -> int:
    """Do what the arguments say."""
    verbs: dict[str, tuple[int, Callable[..., int]]] = {
        "run": (2, run),
        "init": (2, init),
        "read": (3, read),
        "kernel": (0, kernel),
    }
    verb = verbs.get(arguments[0]) if arguments else None
    if verb is None or len(arguments) - 1 < verb[0] or (verb[0] == 0 and len(arguments) > 1):
        print(__doc__, file=sys.stderr)
        return 2
    count = verb[0] + 1
    return verb[1](*(Path(argument) for argument in arguments[1:count]), *arguments[count:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
