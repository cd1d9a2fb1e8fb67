"""Numpy views of a whole model, against the copying loader of safetensors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import run
from harness.image import held, pages
from harness.machine import need_packages
from harness.result import Comparison, Row, Timing, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from suites import Context

BENCHES = Path(__file__).resolve().parents[1]
FASTER = 100.0


def suite(context: Context) -> Iterator[Row]:
    """Open and view all tensors of a bf16 model; then the same with every page touched."""
    need_packages("daxfs", "ml_dtypes", "numpy", "safetensors")
    count = context.pick(2 << 30, 64 << 20)
    source = context.store.weights(count)
    peer = "safetensors.numpy.load_file"
    for kind in ("auto", "no"):
        with held(context.programs, source, "--hugepages", kind) as image:
            got = pages(image.summary)
            context.say(f"{size(count)} of bf16, 300 tensors: {got}")
            command = [
                sys.executable,
                "-m",
                "workers.views",
                source / "model.safetensors",
                context.runs,
                count,
            ]
            done = run(command, env=image.env, fds=[image.fd], cwd=BENCHES)
        times = {name: Timing(seconds) for name, seconds in json.loads(done.stdout)["seconds"].items()}
        size_of_page = "2 MiB" if kind == "auto" else "4 KiB"
        name = f"numpy views, {size_of_page} pages"
        goal = FASTER if kind == "auto" else None
        yield Comparison(name, times["daxfs"], peer, times["safetensors"], goal)
        yield Comparison(f"{name}, touched", times["daxfs, touched"], peer, times["safetensors, touched"])
