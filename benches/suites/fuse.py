"""Images that are mounted by FUSE, beside file systems of the kernel and beside opening the image."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import run
from harness.image import held
from harness.machine import NotRunError, memory_disk, missing, program
from harness.result import Comparison, Row, Timing, size
from harness.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from suites import Context

READ, FIND, EXEC = 0.7, 0.5, 1 / 1.3
# Programs with their libraries: a shell that starts another program, again and again.
PROGRAMS = ("sh", "true")
LOOP = "i=0; while [ $i -lt {count} ]; do /usr/bin/true; i=$((i + 1)); done"
# Maps a file, or the descriptor of an image, and touches a byte of each page.
TOUCH = (
    "import mmap, os, sys, time; start = time.perf_counter(); "
    "fd = int(sys.argv[2]) if sys.argv[1] == 'fd' else os.open(sys.argv[2], os.O_RDONLY); "
    "pages = mmap.mmap(fd, 0, prot=mmap.PROT_READ); pages[::mmap.PAGESIZE]; print(time.perf_counter() - start)"
)


@contextmanager
def _mounted(context: Context, image: str, *options: str, fds: tuple[int, ...] = ()) -> Iterator[Path]:
    """Mount an image at a place of its own, for as long as is said."""
    point = context.scratch / "mount"
    point.mkdir(exist_ok=True)
    run([context.programs.daxfs, "mount", "--as", "fuse", image, point, *options], fds=fds)
    try:
        yield point
    finally:
        run(["umount", point])


def _forget() -> None:
    """Have the kernel forget pages, names and attributes; what is not written back stays."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _dd(path: Path) -> float:
    return run(["dd", f"if={path}", "of=/dev/null", "bs=1M"]).seconds


def _after_forgetting(action: Callable[[], float]) -> Callable[[], float]:
    def forgotten() -> float:
        _forget()
        return action()

    return forgotten


def suite(context: Context) -> Iterator[Row]:
    """Images lie in sealed memory, as those of a holder do."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        raise NotRunError("mounting, and having the kernel forget what it has cached, need root and /dev/fuse")
    yield from reading(context)
    yield from finding(context)
    yield from starting(context)


def reading(context: Context) -> Iterator[Row]:
    """Read one large file in order, and map it."""
    count = context.pick(1 << 30, 16 << 20)
    with memory_disk() as disk:
        source = disk / "source"
        source.mkdir()
        with (source / "file").open("wb") as file:
            for _ in range(count >> 20):
                file.write(os.urandom(1 << 20))
        with held(context.programs, source, "--plain", "--hugepages", "no") as image:
            name, fds = f"fd:{image.fd}", (image.fd,)
            samples: dict[str, list[float]] = {}
            with _mounted(context, name, fds=fds) as point:
                cases: dict[str, Callable[[], float]] = {
                    "tmpfs": lambda: _dd(source / "file"),
                    "first": _after_forgetting(lambda: _dd(point / "file")),
                    "again": lambda: _dd(point / "file"),
                }
                samples |= interleave(cases, context.runs, warm_up=True)
                touch = [sys.executable, "-c", TOUCH]
                cases = {
                    "opened": lambda: float(run([*touch, "fd", str(image.fd)], fds=fds).stdout),
                    "mapped first": _after_forgetting(lambda: float(run([*touch, "path", point / "file"]).stdout)),
                    "mapped again": lambda: float(run([*touch, "path", point / "file"]).stdout),
                }
                samples |= interleave(cases, context.runs, warm_up=True)
            with _mounted(context, name, "-o", "direct_io", fds=fds) as point:
                cases = {"direct": lambda: _dd(point / "file"), "tmpfs beside": lambda: _dd(source / "file")}
                samples |= interleave(cases, context.runs, warm_up=True)
    times = {name: Timing(seconds) for name, seconds in samples.items()}
    what = f"dd of {size(count)}"
    yield Comparison(f"{what}, page cache warm", times["again"], "tmpfs", times["tmpfs"], READ)
    yield Comparison(f"{what}, nothing cached", times["first"], "tmpfs", times["tmpfs"], READ)
    yield Comparison(f"{what}, -o direct_io", times["direct"], "tmpfs", times["tmpfs beside"], READ)
    what = f"mmap of {size(count)}, each page"
    yield Comparison(f"{what}, nothing cached", times["mapped first"], "the image opened", times["opened"])
    yield Comparison(f"{what}, page cache warm", times["mapped again"], "the image opened", times["opened"])


def finding(context: Context) -> Iterator[Row]:
    """Look at every name of a large tree."""
    files = context.pick(60_000, 2_000)
    source = context.store.tree(files, context.pick(1536 << 20, 16 << 20))
    note = missing("mkfs.erofs")
    if note:
        context.say(note)
        return
    if "erofs" not in Path("/proc/filesystems").read_text().split():
        context.say("left out: this kernel has no erofs")
        return
    with memory_disk() as disk:
        peer, theirs = disk / "erofs.img", disk / "erofs"
        run([program("mkfs.erofs") or "mkfs.erofs", "-d0", "-x-1", peer, source])
        theirs.mkdir()
        run(["mount", "-t", "erofs", "-o", "ro,loop", peer, theirs])
        try:
            with (
                held(context.programs, source, "--plain") as image,
                _mounted(context, f"fd:{image.fd}", fds=(image.fd,)) as point,
            ):

                def find(root: Path) -> Callable[[], float]:
                    return lambda: run(["find", root, "-type", "f", "-size", "+1"]).seconds

                first = {"fuse": _after_forgetting(find(point)), "erofs": _after_forgetting(find(theirs))}
                firsts = interleave(first, context.runs)
                again = interleave({"fuse": find(point), "erofs": find(theirs)}, context.runs, warm_up=True)
        finally:
            run(["umount", theirs])
    for what, samples in (("nothing cached", firsts), ("again", again)):
        ours, peers = Timing(samples["fuse"]), Timing(samples["erofs"])
        yield Comparison(f"find over {files} files, {what}", ours, "EROFS, loop", peers, FIND)


def starting(context: Context) -> Iterator[Row]:
    """Start a program with its libraries, many times, below chroot."""
    count = context.pick(1000, 50)
    with memory_disk() as disk:
        source = disk / "root"
        for name in PROGRAMS:
            path = Path(program(name) or name).resolve()
            listed = run(["ldd", path]).stdout.split()
            for part in [path, *(Path(word) for word in listed if word.startswith("/"))]:
                target = source / part.relative_to("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(part, target)
        shell = Path(program("sh") or "sh").resolve()
        (source / "usr/bin").mkdir(parents=True, exist_ok=True)
        if not (source / "usr/bin/true").exists():
            shutil.copy(Path(program("true") or "true").resolve(), source / "usr/bin/true")
        with (
            held(context.programs, source, "--plain") as image,
            _mounted(context, f"fd:{image.fd}", fds=(image.fd,)) as point,
        ):

            def start(root: Path) -> Callable[[], float]:
                return lambda: run(["chroot", root, shell, "-c", LOOP.format(count=count)]).seconds

            samples = interleave({"fuse": start(point), "tmpfs": start(source)}, context.runs, warm_up=True)
    ours, theirs = Timing(samples["fuse"]), Timing(samples["tmpfs"])
    yield Comparison(f"{count} starts of a program with libraries, warm", ours, "tmpfs", theirs, EXEC)
