"""``install``, ``uninstall`` and ``caches``, which import what they need when they are called: few programs do."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Union

from daxfs._daxfs import Image

_Directory = Union[str, "os.PathLike[str]"]


def install() -> None:
    """Have safetensors, transformers and what loads by them take images in this process, until uninstall().

    "llama.daxfs", "llama.daxfs!/text" and "daxfs://NAME" stand for folders of models then, with weights that are views
    of the image, in code that is not changed. ``python -m daxfs.run script.py`` does this before a program. What was
    served is said at the end of the process, in one line on standard error.

    RuntimeError for a version of these packages that is not known, when this is called or when they are imported.
    """
    from daxfs import _install  # noqa: PLC0415

    _install.install()


def uninstall() -> None:
    """Give safetensors, transformers and huggingface_hub their own functions back."""
    from daxfs import _install  # noqa: PLC0415

    _install.uninstall()


def caches(
    image: Image | _Directory, names: Iterable[str] | None = None, *, directory: _Directory | None = None
) -> dict[str, str]:
    """Copy the caches of compilers out of an image, and set the environment variables that name them.

    An image has them in caches/triton, caches/inductor, caches/flashinfer and caches/vllm; names: these and no others.
    Returns the variables that were set. The libraries read them when they are imported or first used: call this before.

    directory: where the copies lie; by default daxfs/caches in $XDG_CACHE_HOME, or in ~/.cache. Each is named after its
    contents and made once; what the libraries compile later is kept in it, too.

    A cache is code that runs in this process: take it from images that are trusted, and opened with key= or expect=.
    """
    from daxfs import _caches  # noqa: PLC0415

    return _caches.caches(image, names, directory=directory)


__all__ = ["caches", "install", "uninstall"]
