"""One of several processes that read the same weights.

    reader daxfs    the image in $DAXFS_IMAGE
    reader safetensors MODEL.safetensors
    reader safe_open MODEL.safetensors numpy|pt
    reader mapping MODEL.safetensors

It says "ready", waits for a line, reads, prints its times, and holds what it has until its input ends.
"""

from __future__ import annotations

import json
import mmap
import struct
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from workers.touch import touch


def mapped(model: str) -> list[np.ndarray]:
    """Make views of a mapping of the file, without any library: the least that a lazy loader can do."""
    with Path(model).open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + struct.unpack("<Q", memory[:8])[0]
    header = json.loads(memory[8:start])
    header.pop("__metadata__", None)
    arrays = []
    for tensor in header.values():
        begin, end = tensor["data_offsets"]
        flat = np.frombuffer(memory, ml_dtypes.bfloat16, (end - begin) // 2, start + begin)
        arrays.append(flat.reshape(tensor["shape"]))
    return arrays


def safe_opened(model: str, framework: str) -> list[np.ndarray]:
    """All tensors, one by one. Those of torch as arrays of bytes: numpy takes no bf16 from it."""
    file = safetensors.safe_open(model, framework=framework)
    tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - it is no mapping
    return [one.view(torch.uint8).numpy() for one in tensors] if framework == "pt" else tensors


def load(library: str, *arguments: str) -> list[np.ndarray]:
    """All tensors."""
    if library == "daxfs":
        return [np.asarray(tensor) for tensor in daxfs.open().tensors().values()]
    if library == "mapping":
        return mapped(*arguments)
    if library == "safe_open":
        return safe_opened(*arguments)
    return list(safetensors.numpy.load_file(*arguments).values())


if __name__ == "__main__":
    # Each imports its own library only: the other's memory is not to be counted.
    if sys.argv[1] == "daxfs":
        import daxfs
    elif sys.argv[1] != "mapping":
        import safetensors.numpy
    if sys.argv[-1] == "pt":
        import torch
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    arrays = load(*sys.argv[1:])
    opened = time.perf_counter() - started
    touch(arrays)
    print(json.dumps({"open": opened, "touched": time.perf_counter() - started}), flush=True)
    sys.stdin.read()
