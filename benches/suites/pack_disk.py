"""Packing weights into a file on a disk, against `cp`; and cloning them where the file system can."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from harness.command import CommandError, run
from harness.image import summary_of
from harness.machine import NotRunError, disk_image, file_system, missing, warm_files, warm_memory
from harness.result import Comparison, Row, Timing, size
from harness.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from suites import Context

OF_COPY, OF_CLONE = 1.0, 0.8
COPY, CLONE = ("cp", "-r"), ("cp", "-r", "--reflink=always")
SPARE = 1 << 30
# The first is what users get: tensors are aligned, and there are hashes of two forms of each file.
MORE = ([], ["--no-hash"], ["--exact"], ["--exact", "--no-hash"])


def _cases(context: Context, source: Path, target: Path, count: int) -> tuple[Callable[..., Callable[[], float]], ...]:
    """Make makers of timed cases below `target`. Before each it is emptied, and the disk idle."""

    def settle() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        os.sync()
        warm_memory(count)

    def pack(*options: str) -> Callable[[], float]:
        def timed() -> float:
            settle()
            done = run([context.programs.pack, source, "-o", target / "image.daxfs", "--json", *options])
            timed.cloned = summary_of(done.stdout)["cloned_bytes"]
            return done.seconds

        return timed

    def copy(*command: str, sync: bool) -> Callable[[], float]:
        def timed() -> float:
            settle()
            words: list[str | Path] = [*command, source, target / "copy"]
            # A shell takes longer to start than a clone does to make, so there is one only where two commands run.
            if sync:
                script = f'{" ".join(command)} "$1" "$2" && sync "$2"/* "$2"'
                words = ["sh", "-c", script, "sh", *words[-2:]]
            return run(words).seconds

        return timed

    return pack, copy


def to_disk(context: Context) -> Iterator[Row]:
    """Both on the same file system, with and without waiting for the disk."""
    count = context.pick(4 << 30, 64 << 20)
    source = context.store.weights(count, shards=3)
    target = context.scratch / "out"
    pack, copy = _cases(context, source, target, count)
    context.say(f"{size(count)} in 3 safetensors files, warm in the page cache, to {file_system(context.scratch)[0]}")
    context.say("cp writes what --exact does; without it tensors are aligned, and files hashed as they were, too")
    for peer, options in (("cp -r", ["--no-sync"]), ("cp -r, then sync", [])):
        ours = {" ".join(["-o FILE", *options, *more]): pack(*options, *more) for more in MORE}
        cases = {**ours, peer: copy(*COPY, sync=not options)}
        times = {name: Timing(taken) for name, taken in interleave(cases, context.runs).items()}
        for name in ours:
            yield Comparison(name, times[name], peer, times[peer], OF_COPY)
    shutil.rmtree(target)


def clones(context: Context, kind: str) -> Iterator[Row]:
    """Clone on a file system with reflinks, in a loop device."""
    count = context.pick(4 << 30, 64 << 20)
    weights = context.store.weights(count, shards=3)
    with disk_image(context.scratch, kind, count + SPARE) as mount:
        source = mount / "weights"
        shutil.copytree(weights, source)
        warm_files(source)
        pack, copy = _cases(context, source, mount / "out", 64 << 20)
        context.say(f"{size(count)} in 3 safetensors files, warm in the page cache, on {kind} in a loop device")
        runs = context.pick(5, 1) * context.runs
        for peer, options in (("cp --reflink=always", ["--no-sync"]), ("cp --reflink=always, then sync", [])):
            # Files whose tensors are moved are no clones.
            name = " ".join([f"{kind}: -o FILE --exact --no-hash", *options])
            case = pack("--exact", "--no-hash", *options)
            times = interleave({name: case, peer: copy(*CLONE, sync=not options)}, runs)
            context.say(f"{name}: {size(case.cloned)} cloned")
            yield Comparison(name, Timing(times[name]), peer, Timing(times[peer]), OF_CLONE)


def reflink(context: Context) -> Iterator[Row]:
    """XFS and btrfs, whichever this machine has."""
    reasons = []
    for kind in ("xfs", "btrfs"):
        try:
            yield from clones(context, kind)
        except (NotRunError, CommandError) as error:
            reasons.append(f"{kind}: {error}")
    note = missing("mkfs.xfs", "mkfs.btrfs")
    if len(reasons) == 2:
        raise NotRunError("; ".join(reasons))
    for line in [*reasons, note]:
        if line:
            context.say(line)
