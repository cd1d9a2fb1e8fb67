"""``safetensors.flax`` over images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.flax as _original
from safetensors.flax import load, save

from daxfs.safetensors import _save
from daxfs.safetensors._open import Filename, safe_open

if TYPE_CHECKING:
    import os

    from jax import Array

_save_file = _original.save_file


def load_file(filename: Filename, *, backend: str = "mmap") -> dict[str, Array]:
    """Return all tensors of a file as arrays: views of what lies on 64 bytes, as packing has it."""
    with safe_open(filename, framework="flax", backend=backend) as file:
        return file.get_tensors()


def save_file(
    tensors: dict[str, Array], filename: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Save to an ordinary file, by safetensors; images are read-only."""
    _save.refuse_images(filename)
    _save_file(tensors, filename, metadata)


__all__ = ["load", "load_file", "save", "save_file"]
