"""One of several processes that read the same weights.

    reader daxfs    the image in $DAXFS_IMAGE
    reader safetensors MODEL.safetensors

It says "ready", waits for a line, reads, prints its times, and holds what it has until its input ends.
"""

from __future__ import annotations

import json
import sys
import time

import ml_dtypes  # noqa: F401 - both sides need it for bf16; its import is not to be timed
import numpy as np

from workers.touch import touch


def load(library: str, *arguments: str) -> list[np.ndarray]:
    """All tensors."""
    if library == "daxfs":
        return [np.asarray(tensor) for tensor in daxfs.open().tensors().values()]
    return list(safetensors.numpy.load_file(*arguments).values())


if __name__ == "__main__":
    # Each imports its own library only: the other's memory is not to be counted.
    if sys.argv[1] == "daxfs":
        import daxfs
    else:
        import safetensors.numpy
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    arrays = load(*sys.argv[1:])
    opened = time.perf_counter() - started
    touch(arrays)
    print(json.dumps({"open": opened, "touched": time.perf_counter() - started}), flush=True)
    sys.stdin.read()
