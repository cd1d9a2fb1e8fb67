"""``safetensors.numpy`` over images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.numpy as _original
from safetensors.numpy import load, save

from daxfs.safetensors import _save
from daxfs.safetensors._open import Filename, safe_open

if TYPE_CHECKING:
    import os
    from typing import Any

    import numpy.typing as npt

_save_file = _original.save_file


def load_file(filename: Filename, *, backend: str = "mmap") -> dict[str, npt.NDArray[Any]]:
    """Return all tensors of a file as arrays: views of the image."""
    with safe_open(filename, framework="np", backend=backend) as file:
        return file.get_tensors()


def save_file(
    tensors: dict[str, npt.NDArray[Any]], filename: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Save to an ordinary file, by safetensors; images are read-only."""
    _save.refuse_images(filename)
    _save_file(tensors, filename, metadata)


__all__ = ["load", "load_file", "save", "save_file"]
