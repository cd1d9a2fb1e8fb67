"""Use the tensors of an image in PyTorch through DLPack, on the CPU, without a copy.

PyTorch has no read-only tensors: it ignores that the memory may not be written, and an in-place operation
such as `tensor.zero_()` on one of these ends the process with a segmentation fault. Clone what you want to
change, or open the image with `private=True`: copy-on-write.

Usage: torch_dlpack.py IMAGE      a path, or "fd:N" for an inherited descriptor
"""

from __future__ import annotations

import sys

import numpy as np

import daxfs

try:
    import torch
except ImportError:
    sys.exit("this example needs PyTorch: pip install torch")


def main(source: str) -> None:
    """Sum every tensor in PyTorch, and say which of them PyTorch had to copy."""
    with daxfs.open(source) as image:
        tensors = image.tensors()
        mine = {name: torch.from_dlpack(tensor) for name, tensor in tensors.items()}
        addresses = {name: np.asarray(tensor).ctypes.data for name, tensor in tensors.items()}
    # The image is closed; each PyTorch tensor keeps its memory alive.
    copies = 0
    for name, tensor in mine.items():
        copied = tensor.data_ptr() != addresses[name]
        copies += copied
        total = tensor.to(torch.float32).sum()
        print(f"{name}  {tensor.dtype}  {list(tensor.shape)}  sum {total:.6g}{'  copied' if copied else ''}")
    print(f"{len(mine)} tensors, {copies} copies")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
