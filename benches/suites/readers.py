"""Several processes read one image at the same time: the memory that all need, and how long they take."""

# ruff: noqa: S603
from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import CommandError
from harness.image import Held, held
from harness.machine import memory, need_packages, warm_memory
from harness.result import Comparison, Row, Timing, Value, size
from harness.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from suites import Context

BENCHES = Path(__file__).resolve().parents[1]
PROCESSES, BELOW = 8, 1.05
SPARE = 4 << 30


@dataclass(frozen=True)
class Crowd:
    """What the processes took together."""

    touched: float  # seconds of the slowest from opening to the last page
    pss: int  # bytes that they have more than before, each shared page counted once; their libraries were there
    image_pss: int  # of it, the mappings of the image
    resident: int  # bytes of all, each page counted in every process


def _rollup(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {key: int(value.split()[0]) * 1024 for key, _, value in (line.partition(":") for line in lines)}


def _pss_of_image(pid: int) -> int:
    """PSS of the mappings of the memfd."""
    total, within = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            within = "/memfd:daxfs" in line
        elif within and first == "Pss:":
            total += int(line.split()[1]) * 1024
    return total


def crowd(count: int, command: Sequence[str | Path], image: Held | None) -> Crowd:
    """Start the processes, let them read all at once, and look at their memory while they hold it."""
    environment = {**os.environ, **(image.env if image else {})}
    fds = [image.fd] if image else []
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=pipe,
                stdout=pipe,
                text=True,
                env=environment,
                pass_fds=fds,
                cwd=BENCHES,
            )
            processes.append(stack.enter_context(process))

        def line_of(process: subprocess.Popen[str]) -> str:
            line = process.stdout.readline()
            if not line:
                raise CommandError(f"{' '.join(map(str, command))}: ended with {process.wait()}")
            return line

        for process in processes:
            line_of(process)
        before = sum(_rollup(process.pid)["Pss"] for process in processes)
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        reports = [json.loads(line_of(process)) for process in processes]
        rollups = [_rollup(process.pid) for process in processes]
        of_image = sum(_pss_of_image(process.pid) for process in processes)
    return Crowd(
        max(report["touched"] for report in reports),
        sum(rollup["Pss"] for rollup in rollups) - before,
        of_image,
        sum(rollup["Rss"] for rollup in rollups),
    )


def suite(context: Context) -> Iterator[Row]:
    """Readers in Rust and in Python, on 2 MiB and 4 KiB pages; the peer copies, so that fewer of it fit."""
    need_packages("daxfs", "ml_dtypes", "numpy", "safetensors")
    count = context.pick(2 << 30, 64 << 20)
    source = context.store.weights(count)
    python = [sys.executable, "-m", "workers.reader"]
    readers = {"Rust": [context.programs.bench, "reader"], "Python": [*python, "daxfs"]}
    crowds: dict[str, Crowd] = {}
    times: dict[str, Timing] = {}
    with ExitStack() as stack:
        images = {
            page: stack.enter_context(held(context.programs, source, "--hugepages", kind))
            for page, kind in (("2 MiB", "auto"), ("4 KiB", "no"))
        }
        bytes_of_image = images["2 MiB"].summary["image_bytes"]

        def case(name: str, command: Sequence[str | Path], image: Held):
            def timed() -> float:
                crowds[name] = crowd(PROCESSES, command, image)
                return crowds[name].touched

            return timed

        cases = {
            f"{language}, {page} pages": case(f"{language}, {page} pages", command, image)
            for language, command in readers.items()
            for page, image in images.items()
        }
        samples = interleave(cases, context.runs)
        times = {name: Timing(seconds) for name, seconds in samples.items()}
    context.say(f"{PROCESSES} processes read one image of {size(bytes_of_image)} at once, every page touched")
    for name, taken in crowds.items():
        image_part = f"{taken.image_pss / bytes_of_image:.3f}"
        shown = f"{taken.pss / bytes_of_image:.3f} of the image ({image_part} its mappings)"
        goal = BELOW if name.startswith("Rust") else None
        yield Value(f"PSS, {name}", taken.pss / bytes_of_image, shown, goal, f"{BELOW}")
        context.say(f"{name}: PSS {size(taken.pss)}, RSS {size(taken.resident)}")
    for language in readers:
        fast, slow = times[f"{language}, 2 MiB pages"], times[f"{language}, 4 KiB pages"]
        yield Comparison(f"open and touch, {language}, 2 MiB pages", fast, "the same, 4 KiB pages", slow)

    # The peer's copies must fit: as many processes as memory allows, down from the same number.
    model = source / "model.safetensors"
    fit = min(PROCESSES, max((memory("MemAvailable") - SPARE) // count, 1))
    warm_memory(fit * count)
    taken = crowd(fit, [*python, "safetensors", model], None)
    context.say(f"safetensors.numpy.load_file, {fit} processes: PSS {size(taken.pss)}, RSS {size(taken.resident)}")
    ours = crowds["Python, 2 MiB pages"].pss / PROCESSES
    yield Value(
        "PSS for each process, Python, 2 MiB pages",
        ours / bytes_of_image,
        size(ours),
        peer=f"safetensors.numpy, {fit} processes",
        theirs=size(taken.pss / fit),
    )
    yield Comparison(
        f"open and touch, Python, {PROCESSES} at once",
        times["Python, 2 MiB pages"],
        f"safetensors.numpy, {fit} at once",
        Timing([taken.touched]),
    )
