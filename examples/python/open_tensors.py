"""Look at every tensor of an image in numpy, without a copy.

Usage: open_tensors.py IMAGE      a path, or "fd:N" for an inherited descriptor
"""

from __future__ import annotations

import sys

import numpy as np

import daxfs


def main(source: str) -> None:
    """Print a line for each tensor: name, type, shape, and the mean of its values."""
    with daxfs.open(source) as image:
        tensors = image.tensors()  # a single safetensors file or a sharded checkpoint
        arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    # The image is closed; the arrays are views that keep its memory alive, and they are read-only.
    for name, array in arrays.items():
        mean = array.astype(np.float64).mean()
        print(f"{name}  {array.dtype.name}  {list(array.shape)}  mean {mean:.6g}")
    total = sum(array.nbytes for array in arrays.values())
    print(f"{len(arrays)} tensors, {total} bytes, {sum(a.flags.owndata for a in arrays.values())} copies")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
