"""A plug-in of pytest for safetensors' own tests: each file that they load is packed, and loaded from the image.

Their modules get our functions in place of those that take the name of a file. What is not there is passed on, and
saving goes to ordinary files, which is what packing begins with.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.flax
import safetensors.numpy
import safetensors.torch

import daxfs
import daxfs.safetensors
import daxfs.safetensors._original
import daxfs.safetensors.flax
import daxfs.safetensors.numpy
import daxfs.safetensors.torch

counts = {"images": 0}


def packed(name: Any) -> Any:
    """Pack a file, and return its name in the image."""
    path = Path(os.fspath(name))
    if not path.is_file():
        return name
    image = path.with_name(f"{path.name}.daxfs")
    # A new one each time: what is mapped of the old one stays as it was.
    daxfs.pack(path, image)
    counts["images"] += 1
    return f"{image}!/{path.name}"


def over_images(function: Callable[..., Any], place: int) -> Callable[..., Any]:
    """Have a function take the file from an image; `place` counts its arguments."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if len(given) > place:
            given[place] = packed(given[place])
        elif "filename" in kwargs:
            kwargs["filename"] = packed(kwargs["filename"])
        return function(*given, **kwargs)

    return wrapped


def put(module: Any, name: str, value: object) -> None:
    """Set an attribute, in the modules that took it from there as well."""
    setattr(module, name, value)


opened = over_images(daxfs.safetensors.safe_open, 0)
for target in (safetensors, safetensors.torch, safetensors.numpy, safetensors.flax):
    put(target, "safe_open", opened)
put(safetensors, "_safe_open_handle", lambda file, *args, **kwargs: opened(file.name, *args, **kwargs))
for theirs, ours in (
    (safetensors.torch, daxfs.safetensors.torch),
    (safetensors.numpy, daxfs.safetensors.numpy),
    (safetensors.flax, daxfs.safetensors.flax),
):
    put(theirs, "load_file", over_images(ours.load_file, 0))
    for same in ("load", "save", "save_file"):
        put(theirs, same, getattr(ours, same))
put(safetensors.torch, "load_model", over_images(daxfs.safetensors.torch.load_model, 1))
put(safetensors.torch, "save_model", daxfs.safetensors.torch.save_model)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many files were loaded from images."""
    terminalreporter.write_line(f"files loaded from images: {counts['images']}")
