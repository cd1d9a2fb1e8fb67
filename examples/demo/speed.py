"""How fast the tensors arrive: daxfs and safetensors in one process, on the same warm weights.

`daxfs-pack ... --into memfd -- python speed.py MODEL.safetensors` prints the median seconds of several runs,
and the private memory, as JSON. The image is the one that $DAXFS_IMAGE names; safetensors reads the model's
own file.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable

import numpy as np
import safetensors.numpy
from safetensors import safe_open

import daxfs
import memory

RUNS = 9
FIRST = "encoder.layer.0.output.dense.weight"


def touch(arrays: Iterable[np.ndarray]) -> int:
    """Read one byte of every 4 KiB page, so that every page must be there."""
    return sum(int(array.reshape(-1).view(np.uint8)[::4096].sum()) for array in arrays)


def daxfs_first() -> None:
    """Open the image and view one tensor."""
    with daxfs.open() as image:
        np.asarray(image["model.safetensors"][FIRST])


def daxfs_all() -> list[np.ndarray]:
    """Open the image and view every tensor."""
    with daxfs.open() as image:
        return [np.asarray(tensor) for tensor in image["model.safetensors"].values()]


def median_seconds(action: Callable[[], object]) -> float:
    """Median time of several runs, after one that warms up; the result's release is not counted."""
    action()
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - started)
        del result
    return statistics.median(times)


def anonymous_growth(action: Callable[[], list[np.ndarray]]) -> int:
    """Bytes of private memory that the arrays need while they are held and have been read."""
    before = memory.of_process().anonymous
    arrays = action()
    touch(arrays)
    return memory.of_process().anonymous - before


def huge_pages() -> int:
    """Bytes of the image that 2 MiB pages map once all is touched: they decide what a touch costs."""
    with daxfs.open() as image:
        image.populate()
        return image.pages["huge"]


def main(path: str) -> None:
    """Time the three actions for both."""

    def safetensors_first() -> None:
        with safe_open(path, framework="numpy") as file:
            file.get_tensor(FIRST)

    def safetensors_all() -> list[np.ndarray]:
        return list(safetensors.numpy.load_file(path).values())

    actions = {
        "open, first tensor": (daxfs_first, safetensors_first),
        "open, all tensors": (daxfs_all, safetensors_all),
        "open, all tensors, touch every page": (
            lambda: touch(daxfs_all()),
            lambda: touch(safetensors_all()),
        ),
    }
    # What a process does once, such as imports, is neither's memory for tensors.
    daxfs_first()
    safetensors_first()
    report = {
        # Memory first: later, freed memory that the allocator keeps would hide what is needed.
        "private": [anonymous_growth(daxfs_all), anonymous_growth(safetensors_all)],
        "seconds": {name: [median_seconds(one) for one in pair] for name, pair in actions.items()},
        "huge": huge_pages(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
