"""Pickling: an image is opened again where it is unpickled, and what belongs to it is looked up there.

An image that has a name (a path, a device, a holder's) is opened by it. Between processes of ``multiprocessing`` its
descriptors are passed instead, so that the same memory is mapped there whatever the name means by then; an image
without a name, such as a memfd, can only be passed so.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from typing import Any, Optional

import daxfs

# Images that tensors and files are pickled with, by their address: one for all of a pickle, since it keeps what it has
# seen, so that it is opened once.
images: weakref.WeakValueDictionary[int, daxfs.Image] = weakref.WeakValueDictionary()

# How an image was opened, from Rust.
_Recipe = dict[str, Any]
_Region = dict[str, Any]


def reduce_image(recipe: _Recipe) -> tuple[Any, ...]:
    """Return how an image is opened again, or raise a TypeError that says why it cannot be."""
    regions = [recipe["memory"], *([recipe["backing"]] if recipe["backing"] else [])]
    common = {key: recipe[key] for key in ("private", "strict", "expect", "verify", "max_metadata")}
    identity = tuple(recipe[key] for key in ("content_hash", "size", "generation"))
    share = _sharer()
    if share is not None and all(region["fd"] is not None for region in regions):
        passed = [(share(region["fd"]), region["part"]) for region in regions]
        if recipe["proven"]:
            # The same memory: this process has compared it, or its holder has, and it cannot have changed.
            common["verify"] = "stored"
        return _receive, (passed, common, identity)
    for region in regions:
        if region["name"] is None:
            msg = f"cannot pickle 'daxfs.Image': {region['why']}"
            raise TypeError(msg)
    return _open, ([region["name"] for region in regions], common, identity)


def _sharer() -> Optional[Callable[[int], Any]]:  # noqa: UP045 - evaluated in 3.9
    """Return what makes a descriptor part of a message of multiprocessing, while one is made by this thread."""
    reduction = sys.modules.get("multiprocessing.reduction")
    if reduction is None:
        return None
    share: Callable[[int], Any] = reduction.DupFd
    if sys.modules["multiprocessing.context"].get_spawning_popen() is not None:
        return share  # the arguments of a new process
    # Queues, pipes and pools pickle by this function; nothing else tells their pickler from others.
    code = reduction.ForkingPickler.dumps.__func__.__code__
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            return share
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _open(names: list[Any], common: dict[str, Any], identity: tuple[Any, ...]) -> daxfs.Image:
    backing = names[1] if len(names) > 1 else None
    return _same(daxfs.open(names[0], backing=backing, **common), identity)


def _receive(passed: list[tuple[Any, Any]], common: dict[str, Any], identity: tuple[Any, ...]) -> daxfs.Image:
    descriptors = [descriptor.detach() for descriptor, _ in passed]
    try:
        sources = [fd if part is None else f"fd:{fd}@{part[0]}+{part[1]}" for fd, (_, part) in zip(descriptors, passed)]
        backing = sources[1] if len(sources) > 1 else None
        return _same(daxfs.open(sources[0], backing=backing, **common), identity)
    finally:
        for fd in descriptors:
            os.close(fd)


def _same(image: daxfs.Image, identity: tuple[Any, ...]) -> daxfs.Image:
    found = (image.content_hash, image.size, image.generation)
    if found != identity:
        msg = f"another image than the one that was pickled: hash, size and generation {found}, not {identity}"
        raise daxfs.DaxfsError(msg)
    return image


def file(image: daxfs.Image, path: bytes, size: int) -> daxfs.File:
    """Return a file that was pickled."""
    found = image[path]
    if found.size != size:
        msg = f"{found.path}: another file than the one that was pickled: {found.size} bytes, not {size}"
        raise daxfs.DaxfsError(msg)
    return found


def directory(image: daxfs.Image, path: bytes) -> daxfs.Directory:
    """Return a directory that was pickled."""
    return image.directory(path)


def tensors(
    image: daxfs.Image,
    path: Optional[bytes],  # noqa: UP045
    variant: Optional[str] = None,  # noqa: UP045
) -> daxfs.Tensors:
    """Return a set of tensors that was pickled."""
    return image.tensors(path, variant=variant)


def tensor(image: daxfs.Image, path: bytes, name: str, kind: tuple[str, tuple[int, ...], int]) -> daxfs.Tensor:
    """Return a tensor that was pickled."""
    found = image[path][name]
    if (found.dtype_name, found.shape, found.offset) != kind:
        msg = f"{name!r} is another tensor than the one that was pickled: {found!r}"
        raise daxfs.DaxfsError(msg)
    return found


__all__ = ["directory", "file", "images", "reduce_image", "tensor", "tensors"]
