"""``safetensors.torch`` over images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import safetensors.torch as _original
from safetensors.torch import load, save

from daxfs.safetensors import _save
from daxfs.safetensors._open import Filename, is_ordinary, safe_open

if TYPE_CHECKING:
    import os

    import torch

_load_model, _save_file, _save_model = _original.load_model, _original.save_file, _original.save_model


def load_file(filename: Filename, device: str | int = "cpu", *, backend: str = "mmap") -> dict[str, torch.Tensor]:
    """Return all tensors of a file: on the CPU, views of the image."""
    with safe_open(filename, framework="pt", device=device, backend=backend) as file:
        return file.get_tensors()


def load_model(
    model: torch.nn.Module,
    filename: Filename,
    strict: bool = True,
    device: str | int = "cpu",
    *,
    backend: str = "mmap",
) -> tuple[list[str], list[str]]:
    """Copy a file's tensors into a model, and return the names that are missing and those that are too many.

    A name is not missing where another one of the same memory is there. daxfs.torch.load_model copies nothing.
    """
    if is_ordinary(filename):
        missing, unexpected = _load_model(model, filename, strict, device, backend=backend)  # type: ignore[arg-type]
        return list(missing), list(unexpected)
    tensors = load_file(filename, device, backend=backend)
    outcome = model.load_state_dict(tensors, strict=False)
    absent, unexpected = set(outcome.missing_keys), list(outcome.unexpected_keys)
    for names in _shared(model):
        # safetensors saves one name of each memory, misses no other, and takes more of them for a mistake.
        there = sorted(name for name in names if name in tensors)
        kept = (there or sorted(names))[0]
        absent -= names - {kept}
        unexpected += [name for name in there if name != kept]
    if strict and (absent or unexpected):
        lines = [f"Error(s) in loading state_dict for {type(model).__name__}:"]
        for kind, found in (("Missing", absent), ("Unexpected", unexpected)):
            if found:
                lines.append(f"    {kind} key(s) in state_dict: " + ", ".join(f'"{name}"' for name in sorted(found)))
        raise RuntimeError("\n".join(lines))
    return sorted(absent), unexpected


def _shared(model: torch.nn.Module) -> list[set[str]]:
    """Return names of the model's state that are of the same memory."""
    groups: dict[tuple[Any, ...], set[str]] = {}
    for name, value in model.state_dict().items():
        if value.device.type != "meta" and value.numel():
            storage = value.untyped_storage()
            place = (value.device, storage.data_ptr(), storage.nbytes(), value.storage_offset(), value.shape)
            groups.setdefault(place, set()).add(name)
    return [names for names in groups.values() if len(names) > 1]


def save_file(
    tensors: dict[str, torch.Tensor], filename: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Save to an ordinary file, by safetensors; images are read-only."""
    _save.refuse_images(filename)
    _save_file(tensors, filename, metadata)


def save_model(
    model: torch.nn.Module,
    filename: str,
    metadata: dict[str, str] | None = None,
    force_contiguous: bool = True,
) -> None:
    """Save a model to an ordinary file, by safetensors; images are read-only."""
    _save.refuse_images(filename)
    _save_model(model, filename, metadata, force_contiguous)


__all__ = ["load", "load_file", "load_model", "save", "save_file", "save_model"]
