"""One tree in several file systems: making them, mounting, reading, and the memory that eight mounts take."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import run
from harness.image import held
from harness.machine import NotRunError, memory, memory_disk, missing, program
from harness.result import Comparison, Row, Timing, Value, size
from harness.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from suites import Context

MOUNTS = 8
KERNEL = ("erofs", "squashfs", "overlay")


@dataclass(frozen=True)
class FileSystem:
    """A kind of file system: how it is made of a tree, and the mount command of what was made."""

    name: str
    make: Sequence[Sequence[str | Path]]
    mount: Sequence[str | Path]
    made: Sequence[Path] = ()
    needs: Sequence[str] = ()  # programs
    fds: tuple[int, ...] = ()


def _kinds(context: Context, source: Path, disk: Path, fd: int) -> list[FileSystem]:
    """Our image is held in sealed memory; the images of others, and a copy of the tree, lie in a tmpfs."""
    daxfs, made = context.programs.daxfs, {name: disk / name for name in ("daxfs", "erofs", "squashfs", "cfs", "copy")}
    pack = [context.programs.pack, source, "-o", made["daxfs"], "-q"]
    objects = disk / "objects"
    ours = [daxfs, "mount", f"fd:{fd}"]
    erofs = ["mkfs.erofs", "-d0", "-x-1", made["erofs"], source]
    squashfs = ["mksquashfs", source, made["squashfs"], "-no-progress", "-quiet", "-no-xattrs"]
    loop = ["-o", "ro,loop"]
    composefs = [["mkcomposefs", f"--digest-store={objects}", source, made["cfs"]]]
    based = ["mount.composefs", "-o", f"basedir={objects}", made["cfs"]]
    return [
        FileSystem("DAXFS, its EROFS view", [pack], [*ours, "--as", "erofs"], [made["daxfs"]], fds=(fd,)),
        FileSystem("DAXFS, FUSE", [], [*ours, "--as", "fuse"], fds=(fd,)),
        FileSystem("EROFS", [erofs], ["mount", *loop, made["erofs"]], [made["erofs"]], ["mkfs.erofs"]),
        FileSystem(
            "squashfs, zlib", [squashfs], ["mount", *loop, made["squashfs"]], [made["squashfs"]], ["mksquashfs"]
        ),
        FileSystem("composefs", composefs, based, [objects, made["cfs"]], ["mkcomposefs", "mount.composefs"]),
        FileSystem(
            "tmpfs, a copy", [["cp", "-a", source, made["copy"]]], ["mount", "--bind", made["copy"]], [made["copy"]]
        ),
    ]


def _words(command: Sequence[str | Path]) -> list[str | Path]:
    return [program(str(command[0])) or command[0], *command[1:]]


def _unmake(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _forget() -> None:
    """Have the kernel forget pages, names and attributes; what is not written back stays."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@contextmanager
def _mounted(kind: FileSystem, point: Path) -> Iterator[Path]:
    point.mkdir(parents=True, exist_ok=True)
    run([*_words(kind.mount), point], fds=kind.fds)
    try:
        yield point
    finally:
        run(["umount", point])


def _read_all(point: Path) -> float:
    return run(["sh", "-c", 'find "$0" -type f -exec cat {} + >/dev/null', point]).seconds


def _find(point: Path) -> float:
    return run(["find", point, "-type", "f", "-size", "+1"]).seconds


def _cold(action: Callable[[Path], float], point: Path) -> Callable[[], float]:
    def timed() -> float:
        _forget()
        return action(point)

    return timed


def _warm(action: Callable[[Path], float], point: Path) -> Callable[[], float]:
    return lambda: action(point)


def _usable(context: Context, kinds: list[FileSystem]) -> list[FileSystem]:
    supported = Path("/proc/filesystems").read_text().split()
    absent = [name for name in KERNEL if name not in supported]
    if absent:
        raise NotRunError(f"this kernel has no {', '.join(absent)}")
    note = missing(*{name for kind in kinds for name in kind.needs})
    if note:
        context.say(note)
    return [kind for kind in kinds if all(program(name) for name in kind.needs)]


def suite(context: Context) -> Iterator[Row]:
    """Everything lies in memory, so that nothing waits for a disk."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        raise NotRunError("mounting, and having the kernel forget what it has cached, need root and /dev/fuse")
    files, count = context.pick(20_000, 1_000), context.pick(1 << 30, 16 << 20)
    with memory_disk() as disk:
        source = shutil.copytree(context.store.tree(files, count), disk / "source")
        made = disk / "made"
        made.mkdir()
        with held(context.programs, source, "--erofs", "--hugepages", "no") as image:
            kinds = _usable(context, _kinds(context, source, made, image.fd))
            first = kinds[0].name
            making = _making(context, kinds, count)
            yield from _rows(f"make of {files} files, {size(count)}", making, first)
            points = context.scratch / "points"
            with ExitStack() as mounts:
                at = {kind.name: mounts.enter_context(_mounted(kind, points / kind.name)) for kind in kinds}
                for what, action in (("find", _find), ("read all", _read_all)):
                    for state, wrap in (("nothing cached", _cold), ("again", _warm)):
                        cases = {name: wrap(action, point) for name, point in at.items()}
                        samples = interleave(cases, context.runs, warm_up=state == "again")
                        yield from _rows(f"{what}, {state}", samples, first)
            yield from _memory(kinds, points, count)


def _making(context: Context, kinds: list[FileSystem], count: int) -> dict[str, list[float]]:
    """Make each in turns; what was made last stays, to be mounted."""

    def case(kind: FileSystem) -> Callable[[], float]:
        def timed() -> float:
            for path in kind.made:
                _unmake(path)
            return sum(run(_words(command)).seconds for command in kind.make)

        return timed

    cases = {kind.name: case(kind) for kind in kinds if kind.make}
    return interleave(cases, context.runs, memory=count + count // 4)


def _rows(what: str, samples: dict[str, list[float]], ours: str) -> Iterator[Row]:
    for name, seconds in samples.items():
        if name != ours:
            yield Comparison(f"{what}", Timing(samples[ours]), name, Timing(seconds))


def _memory(kinds: list[FileSystem], points: Path, count: int) -> Iterator[Row]:
    """Say what more the system holds when each of some mounts of one image was read whole; the image is not in it."""
    for kind in kinds:
        _forget()
        before = memory("MemFree")
        with ExitStack() as mounts:
            for number in range(MOUNTS):
                _read_all(mounts.enter_context(_mounted(kind, points / f"memory-{number}")))
            more = max(before - memory("MemFree"), 0)
        shown = f"{size(more)}, {more / count:.2f} of it"
        yield Value(f"{kind.name}: {MOUNTS} mounts read whole, memory beside the image", more / count, shown)
