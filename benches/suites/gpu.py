"""An image in a GPU's memory, against the most that the link takes and against the loader of safetensors."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import run
from harness.image import held
from harness.machine import NotRunError, memory_disk, need_packages
from harness.result import Comparison, Row, Timing, Value, duration, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from suites import Context

BENCHES = Path(__file__).resolve().parents[1]
OF_THE_LINK = 0.9
OF_A_COPY = 0.85
PEERS = {"safetensors.torch.load_file": 3.0, "fastsafetensors": 1.0, "InstantTensor": 1.0}
ATTACH = 20e-3


def suite(context: Context) -> Iterator[Row]:
    """Copy an image to the first GPU, map a copy that is there, and have kernels read it."""
    need_packages("daxfs", "safetensors")
    probe = run([sys.executable, "-c", PROBE])
    if probe.stdout.strip():
        raise NotRunError(f"left out: {probe.stdout.strip()}")
    count = context.pick(8 << 30, 64 << 20)
    source = context.store.weights(count)
    path = context.scratch / "image.daxfs"
    run([context.programs.pack, source, "-o", path, "-q", "--no-sync"])
    # Else it would be written to the disk while copies are timed.
    os.sync()
    # Some peers read around the page cache: from a tmpfs, they read memory.
    with memory_disk() as disk, held(context.programs, source, "--hash") as image:
        model = source / "model.safetensors"
        copy = shutil.copyfile(model, disk / model.name)
        command = [sys.executable, "-m", "workers.gpu", model, copy, path, context.runs]
        done = json.loads(run(command, env=image.env, fds=[image.fd], cwd=BENCHES).stdout)
    times = {name: Timing(seconds) for name, seconds in done["seconds"].items()}
    context.say(f"{size(done['bytes'])} to {done['name']}")
    for name in ("to, sealed memfd", "to, file in the page cache", "to, registered memfd"):
        context.say(f"{name}: {size(done['bytes'] / times[name].median)}/s")
        yield Comparison(name, times[name], "copies from pinned memory", times["pinned"], OF_THE_LINK)
    for peer, goal in PEERS.items():
        if peer in times:
            name = "to, file in the page cache"
            yield Comparison(name, times[name], f"{peer}, tmpfs", times[peer], goal)
        else:
            context.say(f"left out: {peer} (it, or torch, is not installed)")
    yield Value(
        "image.attach in another process", times["attach"].median, str(times["attach"]), ATTACH, duration(ATTACH)
    )
    # As much is read and written by the two.
    yield Comparison("gather of rows of 4 KiB", times["gather"], "copy in the device", times["copy"], OF_A_COPY)
    for name in ("copy", "gather", "gather over the link", "verify"):
        speed = done["read"][name] / times[name].median
        yield Value(f"{name}, bytes read a second", speed, f"{size(speed)}/s")


# Prints why there is no GPU, or nothing.
PROBE = """
import daxfs
try:
    if not daxfs.devices():
        print("there is no GPU")
except daxfs.DeviceError as error:
    print(error)
"""
