"""Packing container images, beside unpacking them and making another image of the tree."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING

from harness.command import run
from harness.layout import TAG, make_layout
from harness.machine import memory_disk, missing, program, warm_files
from harness.result import Comparison, Row, Timing, Value, duration, size
from harness.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from suites import Context

LAYERS = 6
FASTER = 1.0
GROWTH = 1.1
PEERS = ("umoci", "mkfs.erofs", "mksquashfs", "skopeo")


def _timed(target: Path, *commands: Sequence[str | Path]) -> Callable[[], float]:
    """Time commands that come one after the other; what they made is removed outside of it."""

    def timed() -> float:
        seconds = sum(run([program(str(words[0])) or words[0], *words[1:]]).seconds for words in commands)
        for made in target.iterdir():
            if made.is_dir():
                shutil.rmtree(made)
            else:
                made.unlink()
        return seconds

    return timed


def _cases(context: Context, layout: Path, target: Path) -> dict[str, Callable[[], float]]:
    """Ours, and the ways of the peers whose programs are here."""
    pack = [context.programs.pack, f"oci:{layout}:{TAG}", "-q"]
    image, bundle = target / "image", target / "bundle"
    unpack = ["umoci", "unpack", "--image", f"{layout}:{TAG}", bundle]
    root = bundle / "rootfs"
    erofs = ["mkfs.erofs", "-d0", "-x-1", image, root]
    squashfs = ["mksquashfs", root, image, "-noI", "-noD", "-noF", "-noX", "-no-xattrs", "-no-duplicates"]
    peers: dict[str, tuple[Sequence[str | Path], ...]] = {
        "umoci unpack, mkfs.erofs": (unpack, erofs),
        "umoci unpack, mksquashfs": (unpack, [*squashfs, "-no-progress", "-quiet"]),
        "skopeo copy to dir:": (["skopeo", "copy", "-q", f"oci:{layout}:{TAG}", f"dir:{target / 'copy'}"],),
    }
    cases = {
        "-o FILE": _timed(target, [*pack, "-o", image]),
        "--into memfd": _timed(target, [*pack, "--into", "memfd", "--", "true"]),
    }
    for name, commands in peers.items():
        if all(program(str(words[0])) for words in commands):
            cases[name] = _timed(target, *commands)
    return cases


def suite(context: Context) -> Iterator[Row]:
    """Layouts and images lie in a tmpfs; blobs are compared with their digests by all sides."""
    files, count = context.pick(60_000, 2_000), context.pick(1536 << 20, 16 << 20)
    source = context.store.tree(files, count)
    note = missing(*PEERS)
    if note:
        context.say(note)
    for compressed in (False, True):
        with memory_disk() as disk:
            layout = make_layout(disk / "layout", source, LAYERS, compressed=compressed)
            target = disk / "target"
            target.mkdir()
            samples = interleave(_cases(context, layout, target), context.runs, memory=2 * count)
        times = {name: Timing(seconds) for name, seconds in samples.items()}
        what = f"{files} files, {size(count)}, {LAYERS} layers{', gzip' if compressed else ''}"
        for name in ("-o FILE", "--into memfd"):
            for peer, theirs in times.items():
                if not peer.startswith("-"):
                    yield Comparison(f"{what}, {name}", times[name], peer, theirs, FASTER)
    yield from growth(context)


def growth(context: Context) -> Iterator[Row]:
    """How time grows with the number of files, and with that of layers which hold the same files."""
    step, layers = context.pick(10_000, 250), context.pick(160, 20)
    with memory_disk() as disk:
        target = disk / "target"
        target.mkdir()
        cases: dict[str, Callable[[], float]] = {}
        sizes = [step, 8 * step]
        shapes = [*((number, 4) for number in sizes), (8 * step, layers)]
        for number, parts in shapes:
            source = context.store.tree(number, 4096 * number)
            layout = make_layout(disk / f"{number}-{parts}", source, parts, compressed=False)
            warm_files(layout)
            command = [context.programs.pack, f"oci:{layout}:{TAG}", "-q", "-o", target / "image"]
            cases[f"{number}-{parts}"] = _timed(target, command)
        samples = interleave(cases, context.runs, warm_up=True)
    times = [Timing(samples[f"{number}-{parts}"]).median for number, parts in shapes]
    shown = ", ".join(f"{number} in {parts}: {duration(time)}" for (number, parts), time in zip(shapes, times))
    context.say(f"files of 4 KiB in layers, time: {shown}")
    power = math.log(times[1] / times[0]) / math.log(sizes[1] / sizes[0])
    yield Value(f"growth, {sizes[0]} to {sizes[1]} files", power, f"n^{power:.2f}", GROWTH, f"n^{GROWTH}")
    more = times[2] / times[1]
    yield Value(f"the same files in {layers} layers instead of 4", more, f"{more:.2f} times as long")
