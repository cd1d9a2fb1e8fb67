"""Packing weights into memory, against `cp -r` to a tmpfs and against reading alone."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

from harness.command import run
from harness.image import pages, summary_of
from harness.machine import huge_memory_disk, memory_disk
from harness.result import Comparison, Row, Timing, size
from harness.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from suites import Context

COPY, BARE, BARE_SMALL = "cp -r, tmpfs of 4 KiB pages", "bare read, 2 MiB pages", "bare read, 4 KiB pages"
COPY_HUGE = "cp -r, tmpfs of 2 MiB pages"
# New memory is not hashed unless asked for; the peers hash nothing. Without --exact and --plain tensors are aligned.
HASHED = "--into memfd --hash"
EXACT_HASHED = "--into memfd --exact --hash"
PLAIN = {
    "--into memfd": (),
    "--into memfd --exact": ("--exact",),
    "--into memfd --plain": ("--plain",),
    HASHED: ("--hash",),
    EXACT_HASHED: ("--exact", "--hash"),
}
SMALL = "--into memfd --hugepages no"
OF_COPY, OF_BARE, OF_BARE_HASHED = 2.5, 0.95, 0.75


def copy_to(source: Path, target: Path) -> Callable[[], float]:
    """Time of `cp -r`; what it wrote is removed outside of the time."""

    def timed() -> float:
        try:
            return run(["cp", "-r", source, target]).seconds
        finally:
            shutil.rmtree(target, ignore_errors=True)

    return timed


def suite(context: Context) -> Iterator[Row]:
    """Whole commands, the freeing of the memory at their end included (but for cp)."""
    count = context.pick(4 << 30, 64 << 20)
    source = context.store.weights(count, shards=3)
    context.say(f"{size(count)} in 3 safetensors files, warm in the page cache")
    got: dict[str, str] = {}

    def pack(name: str, *options: str) -> Callable[[], float]:
        def timed() -> float:
            done = run([context.programs.pack, source, *options, "--into", "memfd", "--json", "--", "true"])
            got[name] = pages(summary_of(done.stderr))
            return done.seconds

        return timed

    def bare(name: str, kind: str) -> Callable[[], float]:
        def timed() -> float:
            done = run([context.programs.bench, "bare", "--pages", kind, *sorted(source.glob("*.safetensors"))])
            report = json.loads(done.stdout)
            got[name] = f"{size(report['huge_bytes'])} of {size(report['bytes'])} in 2 MiB pages"
            return done.seconds

        return timed

    with memory_disk() as ordinary, huge_memory_disk(context.scratch) as huge:
        cases = {name: pack(name, *options) for name, options in PLAIN.items()}
        cases[SMALL] = pack(SMALL, "--hugepages", "no")
        cases[COPY] = copy_to(source, ordinary / "copy")
        cases[BARE] = bare(BARE, "huge")
        cases[BARE_SMALL] = bare(BARE_SMALL, "small")
        if huge:
            cases[COPY_HUGE] = copy_to(source, huge / "copy")
        os.sync()
        samples = interleave(cases, context.runs, memory=count + count // 4)
    times = {name: Timing(seconds) for name, seconds in samples.items()}
    for name, words in got.items():
        context.say(f"{name}: {words}")
    for name in PLAIN:
        yield Comparison(name, times[name], COPY, times[COPY], None if "--hash" in name else OF_COPY)
    for name in PLAIN:
        yield Comparison(name, times[name], BARE, times[BARE], OF_BARE_HASHED if "--hash" in name else OF_BARE)
    yield Comparison(SMALL, times[SMALL], BARE_SMALL, times[BARE_SMALL], OF_BARE)
    yield Comparison(SMALL, times[SMALL], COPY, times[COPY])
    if COPY_HUGE in times:
        for name in PLAIN:
            yield Comparison(name, times[name], COPY_HUGE, times[COPY_HUGE])
