"""Folders that stand for images: small files are there, and weights are, in a few bytes, what safetensors is asked for.

    folder/config.json           a copy
    folder/model.safetensors     the header alone, which is no valid file
    folder/.daxfs                the name of the image, and the path in it, as JSON

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


def folder(location: _locate.Location) -> str:
    """Return the folder that stands for an image, or a directory of one; made once while the image is the same."""
    source = location.source
    if not source.startswith((*_locate.SCHEMES, "fd:")):
        source = str(Path(source).absolute())
    name = str(_locate.Location(source, location.path))
    with _files.making:
        runtime = _files.runtime()
        known = runtime.stand_ins.get(name)
        if known is not None and _locate.is_current(known[0]) and Path(known[1]).exists():
            return known[1]
        image = daxfs.open(source)
        try:
            top = image.directory(location.path).path
        except daxfs.NotFoundError as error:
            msg = f"No such directory: {location}"
            raise FileNotFoundError(msg) from error
        made = _make(runtime, image, source, top)
        runtime.stand_ins[name] = image, made
        return made


def _make(runtime: _files.Runtime, image: daxfs.Image, source: str, top: str) -> str:
    # Who asks for a cache gets it.
    is_root = not top.strip("/")
    files = [(path, file) for path, file in _files.below(image, top) if not (is_root and _files.is_cache(file.path))]
    # Nothing stands for other weights: they are copied where a folder has no safetensors.
    copies_weights = not any(path.endswith(".safetensors") for path, _ in files)
    name = top.rpartition("/")[2] or Path(source).stem
    target = Path(tempfile.mkdtemp(dir=runtime.folder)) / name
    target.mkdir()
    marks: set[str] = set()
    for path, file in files:
        own = target / path
        own.parent.mkdir(parents=True, exist_ok=True)
        directory = path.rpartition("/")[0]
        if directory not in marks:
            marks.add(directory)
            inner = "/".join(part for part in (top, directory) if part)
            _locate.stand_for(own.parent, _locate.Location(source, inner))
        if path.endswith(".safetensors"):
            own.write_bytes(_header(file))
        elif _files.is_weights(path):
            if copies_weights:
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
