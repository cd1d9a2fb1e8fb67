"""The machine: what it is, what is installed, temporary file systems, and memory that the host has backed."""

from __future__ import annotations

import importlib.util
import mmap
import os
import platform
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import run

if TYPE_CHECKING:
    from collections.abc import Iterator

MADV_POPULATE_WRITE = 23
MEMORY_DISK = Path("/dev/shm")  # noqa: S108 - a tmpfs is what is measured
SPARE = 2 << 30
WARM_STEP = 256 << 20

REQUIREMENTS = "benches/requirements.txt"

# Programs of the peers, and the Debian package of each.
PACKAGES = {
    "mkfs.erofs": "erofs-utils",
    "mksquashfs": "squashfs-tools",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkcomposefs": "composefs",
    "mount.composefs": "composefs",
}


class NotRunError(Exception):
    """A benchmark cannot run on this machine; the message says why."""


def program(name: str) -> str | None:
    """Path of a program, or None when it is not installed."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing(*names: str) -> str | None:
    """Say which programs are not there, and how to get them; None if all are."""
    absent = [name for name in names if program(name) is None]
    if not absent:
        return None
    packages = " ".join(dict.fromkeys(PACKAGES.get(name, name) for name in absent))
    return f"left out: {', '.join(absent)} (install the package {packages})"


def need_packages(*names: str) -> None:
    """Refuse to go on without these Python packages."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if "daxfs" in absent:
        raise NotRunError("the wheel is not installed: `make wheel`")
    if absent:
        raise NotRunError(f"left out: {', '.join(absent)} ({sys.executable} -m pip install -r {REQUIREMENTS})")


def memory(field: str) -> int:
    """Bytes of a field of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)


def file_system(path: Path) -> tuple[str, str]:
    """Type and mount options of the file system that holds `path`."""
    path = path.resolve()
    best, found = -1, ("unknown", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].encode().decode("unicode_escape"))
        kind, _, options = right.split(maxsplit=2)
        if (path == point or point in path.parents) and len(point.parts) >= best:
            best, found = len(point.parts), (kind, options)
    return found


def describe(directory: Path) -> str:
    """One paragraph on what the numbers were measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    return (
        f"{os.cpu_count()} x {model}, {memory('MemTotal') / 2**30:.0f} GiB, Linux {platform.release()}, "
        f"{file_system(directory)[0]} for the sources, load {os.getloadavg()[0]:.1f}"
    )


def warm_memory(count: int) -> None:
    """Touch `count` bytes of free memory and give them back: just before each run that needs so much.

    In a virtual machine, memory that the host does not back is ten times slower when first touched, and where
    the machine has a balloon with free page reporting, memory goes back to the host seconds after its release.
    One side of a comparison would pay that for the other.
    """
    count = min(count, memory("MemFree") - SPARE)
    held = []
    while count >= WARM_STEP:
        block = mmap.mmap(-1, WARM_STEP, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        held.append(block)
        try:
            block.madvise(mmap.MADV_HUGEPAGE)
            block.madvise(MADV_POPULATE_WRITE)
        except OSError:  # no huge pages, or a kernel before 5.14
            for offset in range(0, WARM_STEP, mmap.PAGESIZE):
                block[offset] = 1
        count -= WARM_STEP
    for block in held:
        block.close()


def warm_file(path: Path) -> None:
    """Read a file, so that it is in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(4 << 20):
            pass


def map_file(path: Path) -> None:
    """Bring a file into the page cache as touching a mapping of it does."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        for offset in range(0, len(pages), mmap.PAGESIZE):
            _ = pages[offset]


def cool_file(path: Path) -> None:
    """Take a file out of the page cache, but for what is not written back yet."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def warm_files(directory: Path) -> None:
    """Read all files, so that they are in the page cache."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            warm_file(path)


def cool_files(directory: Path) -> None:
    """Take all files out of the page cache, for the benchmarks that come next."""
    for path in directory.rglob("*"):
        if path.is_file():
            cool_file(path)


@contextmanager
def readahead(path: Path, kib: int | None = None) -> Iterator[str]:
    """Have the disk of `path` read ahead by `kib` KiB, which needs root; gives what it does, and sets it back."""
    device = path.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        before = setting.read_text().strip()
    except OSError:
        yield "unknown"
        return
    if kib is None or os.geteuid() != 0:
        yield before
        return
    setting.write_text(str(kib))
    try:
        yield str(kib)
    finally:
        setting.write_text(before)


@contextmanager
def memory_disk() -> Iterator[Path]:
    """Make a directory on an ordinary tmpfs (4 KiB pages), and remove it afterwards."""
    kind, options = file_system(MEMORY_DISK)
    if kind != "tmpfs" or ("huge=" in options and "huge=never" not in options):
        raise NotRunError(f"{MEMORY_DISK} is no tmpfs of ordinary pages")
    with tempfile.TemporaryDirectory(prefix="daxfs-bench-", dir=MEMORY_DISK) as name:
        yield Path(name)


@contextmanager
def _mounted(point: Path, *arguments: str) -> Iterator[Path]:
    point.mkdir()
    run(["mount", *arguments, point])
    try:
        yield point
    finally:
        run(["umount", point])
        point.rmdir()


@contextmanager
def huge_memory_disk(directory: Path) -> Iterator[Path | None]:
    """Mount a tmpfs that makes huge pages by itself; None without the right to mount one."""
    if os.geteuid() != 0:
        yield None
        return
    with _mounted(directory / "huge", "-t", "tmpfs", "-o", "huge=always", "tmpfs") as point:
        yield point


@contextmanager
def disk_image(directory: Path, kind: str, count: int) -> Iterator[Path]:
    """Mount a fresh file system of `count` bytes in a sparse file, and remove it afterwards. Root only."""
    maker = f"mkfs.{kind}"
    note = missing(maker)
    if note:
        raise NotRunError(note)
    if os.geteuid() != 0:
        raise NotRunError("mounting a file system needs root")
    if kind not in Path("/proc/filesystems").read_text().split():
        raise NotRunError(f"this kernel has no {kind}")
    image = directory / f"{kind}.img"
    try:
        with image.open("wb") as file:
            file.truncate(count)
        options = ["-q", "-m", "reflink=1"] if kind == "xfs" else ["-q"]
        run([program(maker) or maker, *options, image])
        with _mounted(directory / kind, "-o", "loop", str(image)) as point:
            yield point
    finally:
        image.unlink(missing_ok=True)
