"""An image in a GPU's memory, against the most that the link takes and against the loader of safetensors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import run
from harness.image import held
from harness.machine import NotRunError, need_packages
from harness.result import Comparison, Row, Timing, Value, duration, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from suites import Context

BENCHES = Path(__file__).resolve().parents[1]
OF_THE_LINK = 0.9
FASTER = 3.0
ATTACH = 20e-3


def suite(context: Context) -> Iterator[Row]:
    """Copy an image to the first GPU, and map a copy that is there."""
    need_packages("daxfs", "safetensors")
    probe = run([sys.executable, "-c", PROBE])
    if probe.stdout.strip():
        raise NotRunError(f"left out: {probe.stdout.strip()}")
    count = context.pick(8 << 30, 64 << 20)
    source = context.store.weights(count)
    with held(context.programs, source) as image:
        command = [sys.executable, "-m", "workers.gpu", source / "model.safetensors", context.runs]
        done = json.loads(run(command, env=image.env, fds=[image.fd], cwd=BENCHES).stdout)
    times = {name: Timing(seconds) for name, seconds in done["seconds"].items()}
    speed = size(done["bytes"] / times["to"].median)
    context.say(f"{size(done['bytes'])} from a memfd to {done['name']}: {speed}/s")
    yield Comparison("image.to", times["to"], "copies from pinned memory", times["pinned"], OF_THE_LINK)
    if "torch" in times:
        yield Comparison("image.to", times["to"], "safetensors.torch.load_file", times["torch"], FASTER)
    else:
        context.say("left out: safetensors.torch.load_file (torch is not installed)")
    attach = times["attach"]
    yield Value("image.attach", attach.median, str(attach), ATTACH, duration(ATTACH))


# Prints why there is no GPU, or nothing.
PROBE = """
import daxfs
try:
    if not daxfs.devices():
        print("there is no GPU")
except daxfs.DeviceError as error:
    print(error)
"""
