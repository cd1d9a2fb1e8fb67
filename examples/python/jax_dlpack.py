"""Use the tensors of an image in JAX through DLPack, on the CPU, without a copy.

JAX uses memory as it lies where it starts at a multiple of 64 bytes, and copies it otherwise. `daxfs-pack` puts every
tensor at a multiple of 256, unless --exact says otherwise. Integers of 64 bits become 32-bit
ones, and so copies, unless `jax_enable_x64` is set.

Usage: jax_dlpack.py IMAGE        a path, or "fd:N" for an inherited descriptor
"""

from __future__ import annotations

import sys

import numpy as np

import daxfs

try:
    import jax
    import jax.numpy as jnp
except ImportError:
    sys.exit("this example needs JAX: pip install jax")


def main(source: str) -> None:
    """Sum every tensor in JAX, and say which of them JAX had to copy."""
    with daxfs.open(source) as image:
        tensors = image.tensors()
        arrays = {name: jax.dlpack.from_dlpack(tensor) for name, tensor in tensors.items()}
        addresses = {name: np.asarray(tensor).ctypes.data for name, tensor in tensors.items()}
    # The image is closed; each JAX array keeps its memory alive.
    copies = 0
    for name, array in arrays.items():
        copied = array.unsafe_buffer_pointer() != addresses[name]
        copies += copied
        total = jnp.sum(array.astype(jnp.float32))
        print(f"{name}  {array.dtype.name}  {list(array.shape)}  sum {total:.6g}{'  copied' if copied else ''}")
    print(f"{len(arrays)} tensors, {copies} copies")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
