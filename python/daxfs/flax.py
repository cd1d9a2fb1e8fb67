"""Variables of Flax modules from images: nested dictionaries of JAX's arrays, views of what lies on 64 bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daxfs.safetensors._framework import jax_array
from daxfs.safetensors._open import tensors_of

if TYPE_CHECKING:
    from daxfs.safetensors._open import Filename

__all__ = ["load_variables"]


def load_variables(source: Filename, *, separator: str = ".", collection: str | None = None) -> dict[str, Any]:
    """Return the tensors of a checkpoint as Flax takes variables: {"params": {"dense": {"kernel": array}}}.

    source: the name of an image or a file of it, or what was opened. separator: what stands between the keys in names.
    collection: "params" for names that begin below the collections; by default their first key is one.
    """
    variables: dict[str, Any] = {}
    # Read-only: arrays of JAX never change.
    for name, tensor in tensors_of(source, private=False).items():
        keys = name.split(separator)
        if collection is not None:
            keys.insert(0, collection)
        place = variables
        for key in keys[:-1]:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                msg = f"{name!r} lies below a tensor: another separator than {separator!r} divides these names"
                raise ValueError(msg)
        if isinstance(place.get(keys[-1]), dict):
            msg = f"{name!r} has tensors below it: another separator than {separator!r} divides these names"
            raise ValueError(msg)
        place[keys[-1]] = jax_array(tensor)
    return variables
