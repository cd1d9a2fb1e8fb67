"""Folders that stand for images: small files are there, and weights are, in a few bytes, what safetensors is asked for.

    folder/config.json           a copy
    folder/model.safetensors     the header alone, which is no valid file
    folder/.daxfs                the name of the image, and the path in it

daxfs.safetensors opens such a file in the image; so do other processes, since the folder says where that is. What
reads the file itself finds it cut off.
"""

from __future__ import annotations

import os
import struct
import tempfile
from pathlib import Path

import daxfs
from daxfs import _files, _locate

_made: dict[str, tuple[daxfs.Image, str]] = {}


def folder(location: _locate.Location) -> str:
    """Return the folder that stands for an image, or a directory of one; made once while the image is the same."""
    source = location.source
    if not source.startswith((_locate.SCHEME, "fd:")):
        source = str(Path(source).absolute())
    name = str(_locate.Location(source, location.path))
    with _files.making:
        known = _made.get(name)
        if known is not None and known[0].is_current() and Path(known[1]).exists():
            return known[1]
        image = daxfs.open(source)
        try:
            image.directory(location.path)
        except daxfs.NotFoundError as error:
            msg = f"No such directory: {location}"
            raise FileNotFoundError(msg) from error
        made = _make(image, source, location.path)
        _made[name] = image, made
        return made


def _make(image: daxfs.Image, source: str, top: str) -> str:
    runtime = _files.runtime()
    name = top.rpartition("/")[2] or Path(source).stem
    target = Path(tempfile.mkdtemp(dir=runtime.folder)) / name
    target.mkdir()
    marks: set[str] = set()
    for path, file in _files.below(image, top):
        own = target / path
        own.parent.mkdir(parents=True, exist_ok=True)
        directory = path.rpartition("/")[0]
        if directory not in marks:
            marks.add(directory)
            inner = "/".join(part for part in (top, directory) if part)
            (own.parent / _locate.STAND_IN).write_text(f"{source}{_locate.MARK}{inner}\n")
        if path.endswith(".safetensors"):
            own.write_bytes(_header(file))
        elif _files.is_weights(path):
            # Nothing stands for these: they are copied where a folder has no safetensors.
            if not any(other.endswith(".safetensors") for other in image if other.startswith(f"{top}/" if top else "")):
                _files.write(file, own)
        else:
            os.link(runtime.file(file), own)
    return str(target)


def _header(file: daxfs.File) -> bytes:
    """Return the header of a safetensors file, as it was before packing; as much of it as there is."""
    original = file.original()
    length = original.read_at(0, 8)
    return length + original.read_at(8, min(struct.unpack("<Q", length.ljust(8, b"\0"))[0], 100 << 20))


__all__ = ["folder"]
