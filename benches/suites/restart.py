"""A Python process with weights is killed and started again: all tensors as numpy arrays, untouched and touched."""

# ruff: noqa: S603
from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import CommandError
from harness.holder import serving
from harness.machine import need_packages, warm_memory
from harness.result import Comparison, Row, Timing, duration, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from suites import Context

BENCHES = Path(__file__).resolve().parents[1]
FASTER, SOONER = 50.0, 1.0


@dataclass(frozen=True)
class Life:
    """What one process took, counted from when its libraries were imported."""

    opened: float  # seconds until it had all arrays
    touched: float  # until it had read every page of them


def life(arguments: Sequence[str | Path], environment: Mapping[str, str]) -> Life:
    """Start a process, let it open the weights and touch them, and kill it."""
    command = [sys.executable, "-m", "workers.reader", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=BENCHES, env={**os.environ, **environment}
    ) as process:
        try:
            process.stdout.readline()
            process.stdin.write("go\n")
            process.stdin.flush()
            line = process.stdout.readline()
        finally:
            process.kill()
    if not line:
        raise CommandError(f"{' '.join(command)}: ended with {process.returncode}")
    report = json.loads(line)
    return Life(report["open"], report["touched"])


def suite(context: Context) -> Iterator[Row]:
    """Take turns: every start of ours is timed, the peers' less often, spread over all of them."""
    need_packages("daxfs", "ml_dtypes", "numpy", "safetensors")
    count, starts = context.pick(2 << 30, 64 << 20), context.pick(100, 4)
    model = context.store.weights(count) / "model.safetensors"
    peers = {
        "safetensors.numpy.load_file": ["safetensors", model],
        "safe_open(numpy), get_tensor": ["safe_open", model, "numpy"],
        "bare mapping of the file": ["mapping", model],
    }
    lazy = "bare mapping of the file"
    if importlib.util.find_spec("torch"):
        lazy = "safe_open(pt), get_tensor"
        peers[lazy] = ["safe_open", model, "pt"]
    else:
        context.say("left out: torch is not installed; its lazy mapping is at best the bare mapping of the file")
    lives: dict[str, list[Life]] = defaultdict(list)
    with serving(context.programs) as holder:
        ours = {"2 MiB": "memfd", "4 KiB": "memfd:4K"}
        for page, memory in ours.items():
            info = holder.load(memory.replace(":", "-"), model.parent, "--into", memory)
            context.say(f"{size(info['size'])} held in {memory}, pages of {size(info['page_size'])} ({page})")
        for start in range(starts):
            for page, memory in ours.items():
                environment = {"DAXFS_IMAGE": holder.address(memory.replace(":", "-"))}
                lives[page].append(life(["daxfs"], environment))
            if start % max(starts // context.runs, 1) == 0:
                for peer, arguments in peers.items():
                    warm_memory(count)
                    lives[peer].append(life(arguments, {}))
        held = holder.images()
        attaches = {name: image["attaches"] for name, image in held.items()}
        context.say(f"{starts} starts each, killed with SIGKILL; attaches: {attaches}")
        context.say("from when the libraries are imported, which all of them need, until the arrays are there")
    opened = {name: Timing([one.opened for one in some]) for name, some in lives.items()}
    touched = {name: Timing([one.touched for one in some]) for name, some in lives.items()}
    eager = "safetensors.numpy.load_file"
    for page in ours:
        context.say(f"{page} pages: p99 {duration(opened[page].at(0.99))}, touched {duration(touched[page].at(0.99))}")
        name = f"restart, all arrays, {page} pages"
        goal = page == "2 MiB"
        for peer in peers:
            at_least = FASTER if goal and peer == eager else None
            yield Comparison(name, opened[page], peer, opened[peer], at_least)
        for peer in peers:
            at_least = SOONER if goal and peer == lazy else None
            yield Comparison(f"{name}, touched", touched[page], peer, touched[peer], at_least)
