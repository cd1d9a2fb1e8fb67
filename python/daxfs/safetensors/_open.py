"""``safe_open`` over images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Union

import daxfs
from daxfs import _locate
from daxfs.safetensors import _framework
from daxfs.safetensors._errors import SafetensorError
from daxfs.safetensors._slice import SafeSlice

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

# What names a file: a path, a descriptor of an image, or what was opened already.
Filename = Union[str, os.PathLike[str], int, daxfs.Image, daxfs.File, daxfs.Tensors]
_OBJECTS = (daxfs.Image, daxfs.File, daxfs.Tensors)


class safe_open:  # noqa: N801
    """Opens a file of an image as ``safetensors.safe_open`` opens one of the file system; a context manager.

    filename: a path in an image, "llama.daxfs!/model.safetensors" or "daxfs://NAME!/model.safetensors"; an image, or a
        directory of it, for the checkpoint there; a descriptor of an image; a daxfs.File, Image or Tensors. The name of
        an ordinary file gives the object that safetensors makes.
    framework: "pt", "np" or "jax", or one of their longer names.
    device: where tensors of torch are put; they are copied there.
    backend: "mmap" for views of the image, "pread" for copies.
    """

    def __new__(cls, filename: Filename, framework: str, device: str | int = "cpu", *, backend: str = "mmap") -> Self:
        """Open an image, or have safetensors open a file."""
        is_named = not isinstance(filename, (*_OBJECTS, int))
        location = _locate.locate(filename) if is_named else None
        if is_named and location is None:
            opened: Self = original().safe_open(filename, framework, device, backend=backend)
            return opened
        made = super().__new__(cls)
        made._location = location
        return made

    def __init__(self, filename: Filename, framework: str, device: str | int = "cpu", *, backend: str = "mmap") -> None:
        self._location: _locate.Location | None
        self._framework = framework_of(framework, device, backend)
        # Arrays of JAX never change, and it copies what can.
        private = not isinstance(self._framework, _framework.Jax)
        self._tensors: daxfs.Tensors | None = _tensors_at(filename, self._location, private)
        self._keys: list[str] | None = None

    def _open(self) -> daxfs.Tensors:
        if self._tensors is None:
            msg = "File is closed"
            raise SafetensorError(msg)
        return self._tensors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        self._tensors = None

    def keys(self) -> list[str]:
        """Return the names of the tensors, sorted."""
        tensors = self._open()
        if self._keys is None:
            self._keys = sorted(tensors)
        return list(self._keys)

    def offset_keys(self) -> list[str]:
        """Return the names in the order in which the tensors lie, shard after shard."""
        return [name for name, _ in self._in_order()]

    def _in_order(self) -> list[tuple[str, daxfs.Tensor]]:
        tensors = self._open()
        shards = {shard.path: number for number, shard in enumerate(tensors.shards)}
        several = len(shards) > 1

        def place(item: tuple[str, daxfs.Tensor]) -> tuple[int, int, int]:
            tensor = item[1]
            return shards[tensor.file.path] if several else 0, tensor.offset, tensor.nbytes

        return sorted(tensors.items(), key=place)

    def metadata(self) -> dict[str, str] | None:
        """Return the metadata, None if there is none."""
        return dict(self._open().metadata) or None

    def get_tensor(self, name: str) -> Any:
        """Return a tensor: a view of the image on the CPU."""
        return self._framework.whole(self._tensor(name))

    def get_tensors(self) -> dict[str, Any]:
        """Return all tensors, in the order in which they lie."""
        whole = self._framework.whole
        return {name: whole(tensor) for name, tensor in self._in_order()}

    def get_slice(self, name: str) -> SafeSlice:
        """Return an object whose parts are tensors: only what is indexed is taken."""
        return SafeSlice(self._tensor(name), self._framework)

    def _tensor(self, name: str) -> daxfs.Tensor:
        tensors = self._open()
        if not isinstance(name, str):
            kind = "'None'" if name is None else f"'{type(name).__name__}' object"
            msg = f"argument 'name': {kind} is not an instance of 'str'"
            raise TypeError(msg)
        found = tensors.get(name)
        if found is None:
            msg = f"File does not contain tensor {name}"
            raise SafetensorError(msg)
        return found


def is_ordinary(filename: Filename) -> bool:
    """Tell whether a name is for safetensors itself."""
    return not isinstance(filename, (*_OBJECTS, int)) and _locate.locate(filename) is None


def original() -> Any:
    """Return the safetensors package, which has what is no image."""
    try:
        from daxfs.safetensors import _original  # noqa: PLC0415
    except ImportError as error:
        msg = "ordinary files need the safetensors package (pip install safetensors); images do not"
        raise ImportError(msg) from error
    return _original


def framework_of(name: str, device: str | int, backend: str) -> _framework.Framework:
    """Return how tensors are handed out, or say as safetensors does what is wrong."""
    copy = backend == "pread"
    common = device == "cpu" and backend in {"mmap", "pread"}
    known = name in (*_framework.TORCH, *_framework.NUMPY, *_framework.JAX)
    if not (common and known):
        _refuse_unknown(name, device, backend)
    if name in _framework.NUMPY:
        return _framework.Numpy(copy)
    if name in _framework.JAX:
        return _framework.Jax(copy)
    if name in _framework.TORCH:
        return _framework.Torch(device, copy)
    msg = f"framework {name} does not take tensors of images: take them as numpy's"
    raise SafetensorError(msg)


def _refuse_unknown(name: str, device: str | int, backend: str) -> None:
    """Have safetensors, if it is there, say what it does not take, by a file without tensors."""
    fd = os.memfd_create("daxfs:nothing", os.MFD_CLOEXEC)
    try:
        os.write(fd, b"\x02\0\0\0\0\0\0\0{}")
        with original().safe_open(f"/proc/self/fd/{fd}", name, device, backend=backend):
            pass
    except ImportError as error:
        if error.name == "paddle":
            raise
    finally:
        os.close(fd)


def tensors_of(filename: Filename, *, private: bool) -> daxfs.Tensors:
    """Open the tensors that a name means, which is of no ordinary file."""
    if isinstance(filename, _OBJECTS):
        return _tensors_at(filename, None, private)
    return _tensors_at(filename, None if isinstance(filename, int) else _locate.locate(filename), private)


def _tensors_at(filename: Filename, location: _locate.Location | None, private: bool) -> daxfs.Tensors:
    """Open the tensors of an object, or of what a name means."""
    if isinstance(filename, daxfs.Tensors):
        return filename
    if isinstance(filename, (daxfs.Image, daxfs.File)):
        return filename.tensors()
    image = _locate.open_image(filename if location is None else location.source, private=private)
    path = "" if location is None else location.path
    try:
        found = _locate.find(image, path)
    except daxfs.NotFoundError as error:
        msg = f"No such file or directory: {filename!s}"
        raise FileNotFoundError(msg) from error
    try:
        return image.tensors(path) if isinstance(found, daxfs.Directory) else found.tensors()
    except daxfs.NotFoundError as error:
        msg = f"No safetensors files: {filename!s}"
        raise FileNotFoundError(msg) from error
    except daxfs.FormatError as error:
        msg = f"Error while deserializing header: {error}"
        raise SafetensorError(msg) from error
