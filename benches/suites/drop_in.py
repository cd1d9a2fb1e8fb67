"""Code of others by the same calls: safe_open of safetensors, and from_pretrained of transformers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import run
from harness.data import tensor_names
from harness.machine import need_packages
from harness.result import Comparison, Row, Timing, Value, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from suites import Context

BENCHES = Path(__file__).resolve().parents[1]


def worker(name: str, *words: object) -> str:
    """Run a worker, and return what it prints."""
    command = [sys.executable, "-W", "ignore", "-m", f"workers.{name}", *words]
    return run(command, cwd=BENCHES).stdout


def suite(context: Context) -> Iterator[Row]:
    """Measure with both files in the page cache."""
    need_packages("daxfs", "ml_dtypes", "numpy", "safetensors")
    tensors = 2000
    source = context.store.weights(context.pick(512 << 20, 16 << 20), tensors=tensors)
    image = context.scratch / "image.daxfs"
    run([context.programs.pack, source, "-o", image, "-q", "--no-sync"])
    limits = [context.pick(20, 1), context.pick(500, 3)]
    out = worker("drop_in", source / "model.safetensors", image, tensor_names(tensors)[0], *limits)
    times = {name: Timing(seconds) for name, seconds in json.loads(out)["seconds"].items()}
    image.unlink()
    for name, ours in times.items():
        side, _, case = name.partition(" ")
        if side == "daxfs":
            goal = 5.0 if case.endswith("first") else 1.0
            peer = f"safetensors, {case}"
            yield Comparison(f"drop-in safe_open, {case}", ours, peer, times[f"safetensors {case}"], goal)
    if not importlib.util.find_spec("torch") or not importlib.util.find_spec("transformers"):
        context.say("left out: torch and transformers are not installed")
        return
    yield from models(context)


def models(context: Context) -> Iterator[Row]:
    """Load a model by a new process for each run, in turns."""
    folder, image = context.scratch / "model", context.scratch / "model.daxfs"
    worker("from_pretrained", "make", folder, context.pick(1 << 30, 4 << 20))
    run([context.programs.pack, folder, "-o", image, "-q", "--no-sync"])
    done: dict[str, list[dict[str, float]]] = {"daxfs": [], "transformers": []}
    for number in range(context.runs + 1):
        for side, place in (("daxfs", image), ("transformers", folder)):
            found = json.loads(worker("from_pretrained", side, place).splitlines()[-1])
            # The first one reads what was just written into the page cache.
            if number:
                done[side].append(found)
    ours, theirs = ([run["seconds"] for run in done[side]] for side in ("daxfs", "transformers"))
    total = size(done["daxfs"][0]["size"])
    peer = "from_pretrained(dir)"
    yield Comparison(f"from_pretrained(image), {total}", Timing(ours), peer, Timing(theirs), 2.0)
    own, others = (max(run["private"] for run in done[side]) for side in ("daxfs", "transformers"))
    bound = done["daxfs"][0]["size"] / 20
    yield Value("private memory of that", own, size(own), bound, size(bound), peer, size(others))
