"""From nothing to the first tensor, and to every page touched: Rust against Rust, Python against Python."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import run
from harness.data import tensor_names
from harness.image import Held, held, pages
from harness.machine import need_packages
from harness.result import Comparison, Row, Timing, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from suites import Context

BENCHES = Path(__file__).resolve().parents[1]
# By the number of tensors: Rust, and Python.
GOALS = {300: (5.0, 10.0), 20_000: (20.0, 20.0)}


def rust(context: Context, image: Held, model: Path, file: Path, tensor: str) -> dict[str, Timing]:
    """Both sides in one process, in turns."""
    command = [context.programs.bench, "open", "--model", model, "--image-file", file, "--tensor", tensor]
    limits = ["--seconds", context.pick(10, 1), "--rounds", context.pick(2000, 5)]
    done = run([*command, *limits], env=image.env, fds=[image.fd])
    return {name: Timing(seconds) for name, seconds in json.loads(done.stdout)["seconds"].items()}


def python(context: Context, image: Held, model: Path, tensor: str) -> dict[str, Timing]:
    """Do the same in Python."""
    command = [sys.executable, "-m", "workers.open_tensors", model, tensor]
    limits = [context.pick(10, 1), context.pick(2000, 5)]
    done = run([*command, *limits], env=image.env, fds=[image.fd], cwd=BENCHES)
    return {name: Timing(seconds) for name, seconds in json.loads(done.stdout)["seconds"].items()}


def suite(context: Context) -> Iterator[Row]:
    """Measure with the image in a memfd, and the file of the peers in the page cache."""
    need_packages("daxfs", "ml_dtypes", "numpy", "safetensors")
    count = context.pick(512 << 20, 16 << 20)
    for tensors, (goal, python_goal) in GOALS.items():
        source = context.store.weights(count, tensors=tensors)
        model, tensor = source / "model.safetensors", tensor_names(tensors)[0]
        file = context.scratch / "image.daxfs"
        run([context.programs.pack, source, "-o", file, "-q", "--no-sync"])
        with held(context.programs, source) as image:
            context.say(f"{tensors} tensors, {size(count)}: {pages(image.summary)}")
            times = rust(context, image, model, file, tensor)
            name = f"Rust, {tensors} tensors"
            peer = "safetensors crate + memmap2"
            yield Comparison(f"{name}, first", times["daxfs"], peer, times["safetensors"], goal)
            yield Comparison(f"{name}, first, file", times["daxfs, file"], peer, times["safetensors"])
            touched = times["safetensors, touched"]
            yield Comparison(f"{name}, all touched", times["daxfs, touched"], peer, touched)

            times = python(context, image, model, tensor)
            name = f"Python, {tensors} tensors"
            for framework in ("numpy", "torch"):
                peer = f"safe_open({framework}), get_tensor"
                if f"safetensors {framework}" not in times:
                    context.say(f"left out: {framework} is not installed")
                    continue
                ours, theirs = times[f"daxfs {framework}"], times[f"safetensors {framework}"]
                yield Comparison(f"{name}, first, {framework}", ours, peer, theirs, python_goal)
                ours, theirs = (
                    times[f"daxfs {framework}, touched"],
                    times[f"safetensors {framework}, touched"],
                )
                yield Comparison(f"{name}, all touched, {framework}", ours, peer, theirs)
        file.unlink()
