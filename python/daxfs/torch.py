"""Models of torch over images: state dictionaries, modules whose parameters are views, and images made of modules.

    with daxfs.torch.empty_on_meta():
        model = Model(config)  # no memory for its weights
    daxfs.torch.load_model(model, "llama.daxfs")  # parameters are views of the image

An image that is given by its name is mapped copy-on-write, as safetensors maps files: what is written to a parameter
stays in this process. With ``daxfs.open(...)`` it is as that says, and torch knows no read-only tensors: see
``daxfs.open(..., private=True)``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Union

import torch
from torch.overrides import TorchFunctionMode

import daxfs
from daxfs import _locate
from daxfs._pack_model import save_model
from daxfs.safetensors._framework import Torch
from daxfs.safetensors._open import tensors_of
from daxfs.safetensors._slice import SafeSlice

Source = Union[str, os.PathLike[str], int, daxfs.Image, daxfs.File, daxfs.Tensors, Mapping[str, daxfs.Tensor]]

__all__ = ["empty_on_meta", "load_model", "save_model", "state_dict"]


def _tensors(source: Source) -> Mapping[str, daxfs.Tensor]:
    if isinstance(source, Mapping) and not isinstance(source, (daxfs.Image, daxfs.Tensors)):
        return source
    if isinstance(source, (str, os.PathLike)) and _locate.locate(source) is None:
        return daxfs.open(source, private=True).tensors()
    return tensors_of(source, private=True)


def state_dict(source: Source) -> dict[str, SafeSlice]:
    """Return the tensors of a checkpoint as a state dictionary of lazy values.

    Each has get_shape() and get_dtype(), and gives a tensor of torch when it is indexed: ``value[...]``,
    ``value[:, 256:512]``. That is what ``from_pretrained(None, config=..., state_dict=...)`` of transformers takes, and
    what loaders that shard want.
    """
    framework = Torch("cpu", copy=False)
    return {name: SafeSlice(tensor, framework) for name, tensor in _tensors(source).items()}


class _EmptyOnMeta(TorchFunctionMode):
    """Has torch.empty give tensors without memory."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None and kwargs.get("out") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def empty_on_meta() -> Iterator[None]:
    """Give modules that are made here parameters without memory, and buffers with their values.

    torch's layers get their parameters from torch.empty, and initialise them; on the device "meta" both cost nothing.
    Buffers are computed, so that those that no checkpoint holds are right, as under ``torch.device("meta")`` they are
    not.
    """
    with _EmptyOnMeta():
        yield


def load_model(module: torch.nn.Module, source: Source, *, strict: bool = True) -> tuple[list[str], list[str]]:
    """Make the parameters and buffers of a module views of a checkpoint's tensors; nothing is copied.

    Names that are one parameter in the module stay one, also where the checkpoint has only one of them. Types are those
    of the checkpoint. The names that are missing, and those that the module does not have, are returned; with strict
    they are a RuntimeError, and so is what is left without memory, such as buffers of no checkpoint on "meta".
    """
    tensors = _tensors(source)
    tied = _tied(module)
    outcome = module.load_state_dict(
        {name: tensor.torch() for name, tensor in tensors.items()}, strict=False, assign=True
    )
    unexpected = list(outcome.unexpected_keys)
    missing = set(outcome.missing_keys)
    for names in tied:
        there = [name for name in names if name in tensors]
        if there:
            # As if each were copied into the one memory: the last one stays.
            value = _get(module, there[-1])
            for name in names:
                _set(module, name, value)
            missing.difference_update(names)
    absent = [name for name in module.state_dict() if name in missing]
    empty = [name for name, value in _named(module) if value.device.type == "meta" and name not in missing]
    if strict and (absent or unexpected or empty):
        raise RuntimeError(_complaint(module, absent, unexpected, empty))
    return absent, unexpected


def _complaint(module: torch.nn.Module, missing: list[str], unexpected: list[str], empty: list[str]) -> str:
    lines = [f"Error(s) in loading state_dict for {type(module).__name__}:"]
    for what, names in (
        ("Missing key(s) in state_dict", missing),
        ("Unexpected key(s) in state_dict", unexpected),
        ("No values for what no checkpoint holds; make the module under daxfs.torch.empty_on_meta()", empty),
    ):
        if names:
            lines.append(f"    {what}: " + ", ".join(f'"{name}"' for name in names))
    return "\n".join(lines)


def _named(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _tied(module: torch.nn.Module) -> list[list[str]]:
    """Return the names that stand for one object."""
    names: dict[int, list[str]] = {}
    for name, value in _named(module):
        names.setdefault(id(value), []).append(name)
    return [several for several in names.values() if len(several) > 1]


def _owner(module: torch.nn.Module, name: str) -> tuple[dict[str, Any], str]:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    return owner._parameters if leaf in owner._parameters else owner._buffers, leaf


def _get(module: torch.nn.Module, name: str) -> Any:
    values, leaf = _owner(module, name)
    return values[leaf]


def _set(module: torch.nn.Module, name: str, value: Any) -> None:
    values, leaf = _owner(module, name)
    values[leaf] = value
