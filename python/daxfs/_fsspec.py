"""Images as file systems of fsspec, which finds this by an entry point.

pandas.read_csv("daxfs://llama!/labels.csv")               an image of a holder
fsspec.open("daxfs:///data/llama.daxfs!/config.json")      one in a file, by its absolute path
fsspec.open("daxfs://config.json::/data/llama.daxfs")      the same, chained
"""

from __future__ import annotations

import io
import os
from typing import Any

from fsspec import AbstractFileSystem  # type: ignore[import-untyped]

import daxfs
from daxfs import _locate


class DaxfsFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The files of images, read-only; what is opened is a stream of the image's memory."""

    protocol = "daxfs"
    root_marker = ""

    def __init__(self, fo: Any = None, target_protocol: str | None = None, **options: Any) -> None:
        """Make a file system: of the image `fo`, or of those that paths name before "!/"."""
        options.pop("target_options", None)
        super().__init__(fo=fo, target_protocol=target_protocol, **options)
        if target_protocol not in {None, "file", "local"}:
            msg = f"the image lies on {target_protocol}: images are opened where they are, in files and memory"
            raise ValueError(msg)
        self._fo = fo
        self._images: dict[Any, daxfs.Image] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        path = os.fspath(path)
        return path[len(_locate.SCHEME) :] if path.startswith(_locate.SCHEME) else path

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""
        return _locate.SCHEME + self._strip_protocol(name)

    @classmethod
    def _parent(cls, path: str) -> str:
        source, mark, inner = cls._strip_protocol(path).rstrip("/").partition(_locate.MARK)
        if not mark:
            return source.rpartition("/")[0] if _locate.SUFFIX not in source else source
        return f"{source}{mark}{inner.rpartition('/')[0]}"

    def _place(self, path: str) -> tuple[daxfs.Image, str, str]:
        """Return an image, the path in it, and what stands before that in names."""
        path = self._strip_protocol(path)
        if self._fo is not None:
            return self._image(self._fo), path.strip("/"), ""
        source, _, inner = path.partition(_locate.MARK)
        # Names of holders have no slashes.
        where = source if "/" in source else _locate.SCHEME + source
        return self._image(where), inner.strip("/"), source + _locate.MARK

    def _image(self, source: Any) -> daxfs.Image:
        image = self._images.get(source)
        if image is None or not _locate.is_current(image):
            image = self._images[source] = daxfs.open(source)
        return image

    def _found(self, path: str) -> tuple[Any, daxfs.Image, str, str]:
        image, inner, before = self._place(path)
        try:
            found = image / inner if inner else image.directory()
        except daxfs.NotFoundError as error:
            raise FileNotFoundError(path) from error
        return found, image, inner, before

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return what is known of a file or directory."""
        found, image, inner, before = self._found(path)
        return _described(found, image, before + inner, inner)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List a directory."""
        found, image, inner, before = self._found(path)
        if isinstance(found, daxfs.File):
            listed = [_described(found, image, before + inner, inner)]
        else:
            below = [(f"{inner}/{name}" if inner else name, entry) for name, entry in found.items()]
            listed = [_described(entry, image, before + name, name) for name, entry in below]
        return listed if detail else [entry["name"] for entry in listed]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BufferedReader:
        return self._file(path).open(mode)  # type: ignore[return-value]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return the bytes of a file, or a part of them."""
        return self._file(path)[start:end]

    def ukey(self, path: str) -> str:
        """Return what changes with the contents."""
        return self._file(path).hash()

    def modified(self, path: str) -> Any:
        """Raise: an image keeps no times."""
        msg = f"{path}: images keep no times"
        raise NotImplementedError(msg)

    created = modified

    def _file(self, path: str) -> daxfs.File:
        found = self._found(path)[0]
        if not isinstance(found, daxfs.File):
            raise IsADirectoryError(path)
        return found


def _described(found: Any, image: daxfs.Image, name: str, inner: str) -> dict[str, Any]:
    status = image.stat(inner or "/")
    is_file = isinstance(found, daxfs.File)
    return {
        "name": name,
        "size": found.size if is_file else 0,
        "type": "file" if is_file else "directory",
        "ino": status.st_ino,
        "mode": status.st_mode,
    }
