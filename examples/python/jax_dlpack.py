"""Use the tensors of an image in JAX through DLPack, on the CPU, without a copy.

JAX uses memory as it lies where it starts at a multiple of 64 bytes, and copies it silently otherwise. Packed
with `daxfs-pack --align-tensors`, every tensor starts at a multiple of 256.

Usage: jax_dlpack.py IMAGE        a path, or "fd:N" for an inherited descriptor
"""

from __future__ import annotations

import sys

import daxfs
import numpy as np

try:
    import jax
    import jax.numpy as jnp
except ImportError:
    sys.exit("this example needs JAX: pip install jax")


def main(source: str) -> None:
    """Sum every tensor in JAX, and count those that JAX uses where they lie."""
    with daxfs.open(source) as image:
        tensors = image.tensors()
        arrays = {name: jax.dlpack.from_dlpack(tensor) for name, tensor in tensors.items()}
        addresses = {name: np.asarray(tensor).ctypes.data for name, tensor in tensors.items()}
    # The image is closed; each JAX array keeps its memory alive.
    for name, array in arrays.items():
        print(
            f"{name}  {array.dtype.name}  {list(array.shape)}  sum {jnp.sum(array.astype(jnp.float32)):.6g}"
        )
    shared = sum(array.unsafe_buffer_pointer() == addresses[name] for name, array in arrays.items())
    print(f"{len(arrays)} tensors, {len(arrays) - shared} copies")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
