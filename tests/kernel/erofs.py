#!/usr/bin/env python3
"""Two guests on one image in persistent memory, by the EROFS of a stock kernel: in place, and one copy for both.

    erofs.py [--note FILE]    tell FILE of guests that died
    erofs.py --available      only say whether they could run here

The image is a file of this machine, which both guests have as virtio-pmem. Each mounts it with `dax=always` and
compares it with the source: by the device, by a loop device, and below OverlayFS. The model that both map costs their
page caches nothing, and this machine has it once.

Exit status: 0 passed, 1 failed, 77 the tests could not be run on this machine (the reason is printed).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packages import UnavailableError
from vm import Guest, GuestDiedError, Running, busybox, check_requirements, twice

ROOT = Path(__file__).resolve().parents[2]
FAILED, NOT_RUN = 1, 77
MODULES = ["crc32c_generic", "erofs", "loop", "virtio_pmem", "nd_pmem"]
MODEL = 40 << 20
# What the guests' kernels map at once.
UNIT = 16 << 20
PATIENCE = 600


def make_source(source: Path) -> None:
    """A tree of what has a form of its own in EROFS, and a model."""
    rng = random.Random(19)  # noqa: S311
    (source / "bin").mkdir(parents=True)
    shutil.copy2(busybox(), source / "bin/busybox")
    (source / "model").write_bytes(rng.randbytes(MODEL))
    for number in range(600):
        folder = source / f"many/{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"a file with a long name {number:04}").write_bytes(rng.randbytes(number))
    for name in (b"n" * 255, b"not\xffutf-8", b".a", b"!", b"..."):
        Path(os.fsdecode(bytes(source / "many") + b"/" + name)).write_bytes(name)
    (source / "link").symlink_to("many/0")
    (source / "long link").symlink_to("a/" * 2000)
    os.link(source / "model", source / "many/again")
    (source / "bin/setuid").write_bytes(b"#!")
    (source / "bin/setuid").chmod(0o4755)
    # Files of one extent: DAX would warn of two inodes on one page.
    for size in (1, 4096, 12288, 50_000):
        data = rng.randbytes(size)
        for name, mode in (("one", 0o644), ("two", 0o644), ("three", 0o600)):
            path = source / f"same-{size}-{name}"
            path.write_bytes(data)
            path.chmod(mode)


def pack(source: Path, image: Path) -> None:
    """Pack and check with the commands of this checkout."""
    subprocess.run(["cargo", "build", "--locked", "--bins"], cwd=ROOT, check=True)
    programs = ROOT / "target/debug"
    line = [programs / "daxfs-pack", "-q", "--dedupe", "--links", "keep", "--verify", source, "-o", image]
    subprocess.run(line, check=True)
    subprocess.run([programs / "daxfs", "verify", "-q", image, source], check=True)
    os.truncate(image, -(-image.stat().st_size // UNIT) * UNIT)


def resident(process: int, image: Path) -> tuple[int, int]:
    """Bytes of the image that an emulator has mapped and touched, and its share of them."""
    here, rss, pss = False, 0, 0
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            here = line.endswith(str(image))
        elif here and line.startswith(("Rss:", "Pss:")):
            size = int(line.split()[1]) << 10
            rss, pss = (rss + size, pss) if line.startswith("Rss:") else (rss, pss + size)
    return rss, pss


def wait_until_ready(name: str, running: Running) -> bool:
    for line in running.output:
        if line.strip() == "ready":
            return True
        print(f"{name}: {line}", end="", flush=True)
    return False


def boot(source: Path, image: Path) -> int:
    """Both guests at once."""
    guests = []
    devices = subprocess.check_output([ROOT / "target/debug/daxfs", "vm-args", image], text=True).split()
    with contextlib.ExitStack() as stack:
        for name in ("guest A", "guest B"):
            guest = Guest(
                memory="1G,slots=1,maxmem=4G", modules=MODULES, devices=devices, interactive=True, timeout=PATIENCE
            )
            command = [sys.executable, str(Path(__file__).with_name("erofs_guest.py")), str(source), str(image)]
            guests.append((name, stack.enter_context(guest.start(command))))
        ready = [wait_until_ready(name, running) for name, running in guests]
        status = 0
        if all(ready):
            for name, running in guests:
                rss, pss = resident(running.process.pid, image)
                print(f"erofs.py: {name}: {rss >> 20} MiB of the image, {pss >> 20} MiB as its share", flush=True)
                if not (rss > MODEL and pss < rss * 3 // 4):
                    print(f"erofs.py: {name} has a copy of its own", file=sys.stderr)
                    status = FAILED
        for name, running in guests:
            with contextlib.suppress(OSError):
                running.input.write("end\n")
            for line in running.output:
                print(f"{name}: {line}", end="", flush=True)
            status = status or running.wait()
    return FAILED if status else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--available", action="store_true", help="build and run nothing")
    parser.add_argument("--note", type=Path, metavar="FILE", help="where to write what a summary should tell")
    a = parser.parse_args()
    try:
        check_requirements()
    except UnavailableError as why:
        print(f"not run: {why}")
        return NOT_RUN
    if a.available:
        return 0
    with tempfile.TemporaryDirectory(prefix="daxfs-erofs-") as work:
        source, image = Path(work, "source"), Path(work, "image.daxfs")
        make_source(source)
        pack(source, image)
        try:
            return twice(lambda: boot(source, image), a.note.write_text if a.note else print)
        except GuestDiedError:
            return FAILED


if __name__ == "__main__":
    sys.exit(main())
