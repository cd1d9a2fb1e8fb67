"""Packing many small files: time against other image makers, growth, and the packer's own memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.command import peak_memory, run
from harness.machine import memory_disk, missing, program
from harness.result import Comparison, Row, Timing, Value, duration, size
from harness.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from suites import Context

# With hashes, and without.
FASTER_THAN = {"mkfs.erofs": (2.5, 4.0), "mksquashfs": (2.0, 2.0), "tar": (None, None)}
GROWTH = 1.1
PER_FILE = 1024


def _peers(source: Path, target: Path) -> dict[str, list[str | Path]]:
    """Give the commands of the peers that are here, at their fastest: no compression, no attributes."""
    commands: dict[str, list[str | Path]] = {
        "mkfs.erofs": ["mkfs.erofs", "-d0", "-x-1", target, source],
        "mksquashfs": [
            *("mksquashfs", source, target, "-noI", "-noD", "-noF", "-noX", "-no-xattrs"),
            *("-no-duplicates", "-no-progress", "-quiet"),
        ],
        "tar": ["tar", "-cf", target, "-C", source, "."],
    }
    return {name: [program(name) or name, *arguments[1:]] for name, arguments in commands.items() if program(name)}


def _timed(command: list[str | Path], target: Path) -> Callable[[], float]:
    def timed() -> float:
        target.unlink(missing_ok=True)
        return run(command).seconds

    return timed


def suite(context: Context) -> Iterator[Row]:
    """All images go to the same tmpfs."""
    files, count = context.pick(60_000, 2_000), context.pick(1536 << 20, 16 << 20)
    source = context.store.tree(files, count)
    context.say(f"{files} files, {size(count)}, warm in the page cache, into a tmpfs; peers without compression")
    pack = context.programs.pack
    with memory_disk() as disk:
        target = disk / "image"
        ours: dict[str, list[str | Path]] = {
            "-o FILE": [pack, source, "-o", target, "-q"],
            "-o FILE --hugepages no": [pack, source, "-o", target, "-q", "--hugepages", "no"],
            "-o FILE --no-hash": [pack, source, "-o", target, "-q", "--no-hash"],
            "--into memfd": [pack, source, "--into", "memfd", "-q", "--", "true"],
            "--into memfd --hash": [pack, source, "--into", "memfd", "--hash", "-q", "--", "true"],
        }
        commands = {**ours, **_peers(source, target)}
        cases = {name: _timed(words, target) for name, words in commands.items()}
        samples = interleave(cases, context.runs, memory=count + count // 4)
    times = {name: Timing(seconds) for name, seconds in samples.items()}
    note = missing(*FASTER_THAN)
    if note:
        context.say(note)
    for peer, (hashed, plain) in FASTER_THAN.items():
        if peer in times:
            for name in ours:
                # New memory is not hashed unless asked for.
                is_plain = "--no-hash" in name or ("--into" in name and "--hash" not in name)
                yield Comparison(name, times[name], peer, times[peer], plain if is_plain else hashed)
    yield from growth(context)


def growth(context: Context) -> Iterator[Row]:
    """Trees of 4 KiB files: how time grows with their number, and what memory each costs."""
    counts = [context.pick(full, quick) for full, quick in zip((10, 20, 40, 80, 160), (250, 500, 1000, 2000, 4000))]
    if not context.quick:
        counts = [1000 * count for count in counts]
    trees = {count: context.store.tree(count, 4096 * count) for count in counts}
    pack = context.programs.pack
    with memory_disk() as disk:
        target = disk / "image"

        def command(tree: Path) -> list[str | Path]:
            return [pack, tree, "-o", target, "-q"]

        cases = {str(count): _timed(command(tree), target) for count, tree in trees.items()}
        samples = interleave(cases, context.runs, memory=5120 * counts[-1])
        times = {int(count): Timing(seconds) for count, seconds in samples.items()}
        each = ", ".join(f"{count}: {duration(timing.median / count)}" for count, timing in times.items())
        context.say(f"files of 4 KiB, time for each by their number: {each}")
        first, last = counts[0], counts[-1]
        power = math.log(times[last].median / times[first].median) / math.log(last / first)
        yield Value(f"growth, {first} to {last} files", power, f"n^{power:.2f}", GROWTH, f"n^{GROWTH}")

        anonymous = {count: peak_memory(command(trees[count])).anonymous for count in (first, last)}
    # To a disk nothing of the image is mapped, so all that is resident counts, the program itself too.
    target = context.scratch / "image"
    resident = peak_memory([pack, trees[last], "-o", target, "-q", "--no-sync"]).resident
    target.unlink()
    slope = (anonymous[last] - anonymous[first]) / (last - first)
    yield Value(
        f"private memory, {last} files, each",
        anonymous[last] / last,
        size(anonymous[last] / last),
        PER_FILE,
        "1 KiB",
    )
    yield Value("private memory that one more file adds", slope, size(slope), PER_FILE, "1 KiB")
    yield Value(f"all memory, {last} files to a disk, each", resident / last, size(resident / last), PER_FILE, "1 KiB")
