"""What a path of other libraries means: a file of an image, a whole image, or a file of the file system.

    llama.daxfs                    the image
    llama.daxfs!/tokenizer.json    a file or directory of it; the image may have any name here
    daxfs://llama                  an image of a holder
    daxfs://llama!/model.safetensors
    daxfs+unix:///run/daxfs.sock/llama    one of the holder at this socket

A file that exists under the whole name is that file: the file system has the first word. Every opening of a file looks
for this, so that few system calls and no objects for paths are made for it.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple, Optional

import daxfs

SCHEME = "daxfs://"
# With the path of the socket, as Holder.address() has it.
SOCKET_SCHEME = "daxfs+unix://"
SCHEMES = (SCHEME, SOCKET_SCHEME)
SUFFIX = ".daxfs"
# Between an image and a path in it, as in URLs of archives.
MARK = "!/"
# Folders of processes begin with this, and in one that stands for an image this file names it.
RUNTIME = "daxfs-files-"
STAND_IN = ".daxfs"


class Location(NamedTuple):
    """A place in an image that is named, and not opened yet."""

    source: str
    path: str

    def __str__(self) -> str:
        return f"{self.source}{MARK}{self.path}" if self.path else self.source

    def join(self, name: str) -> Location:
        """Return what lies below."""
        return Location(self.source, f"{self.path}/{name}" if self.path else name)

    def open(self, *, private: bool = False) -> daxfs.Image:
        """Open the image; `private` where its memory permits that."""
        return open_image(self.source, private=private)


def locate(name: object) -> Optional[Location]:  # noqa: UP045 - Python 3.9
    """Return the place in an image that a path means; None for all that is none."""
    text = os.fspath(name) if isinstance(name, (str, os.PathLike)) else None
    if not isinstance(text, str):
        return None
    # pathlib makes one of several slashes.
    if text.startswith("daxfs:/") and not text.startswith(SCHEME):
        text = SCHEME + text[len("daxfs:/") :]
    if text.startswith("daxfs+unix:/") and not text.startswith(SOCKET_SCHEME):
        text = SOCKET_SCHEME + text[len("daxfs+unix:") :]
    if text.startswith(SCHEMES):
        source, _, path = text.partition(MARK)
        return Location(source, _clean(path))
    if RUNTIME in text:
        return _stood_for(Path(text))
    if text.endswith(SUFFIX) and _is_there(text):
        return Location(text, "")
    at = text.find(MARK)
    while at >= 0:
        # The file system has the first word, also on names with a mark.
        if (_is_there(text[:at]) or text.startswith("fd:")) and _mode(text) is None:
            return Location(text[:at], _clean(text[at + len(MARK) :]))
        at = text.find(MARK, at + 1)
    return None


def _stood_for(path: Path) -> Optional[Location]:  # noqa: UP045
    """Return what a file in a folder of daxfs stands for, which the folder says."""
    if not path.name.endswith(".safetensors"):
        return None
    try:
        place = json.loads((path.parent / STAND_IN).read_text())
        return Location(str(place["image"]), str(place["path"])).join(path.name)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def stand_for(folder: Path, location: Location) -> None:
    """Have the safetensors files in a folder stand for those in a directory of an image."""
    (folder / STAND_IN).write_text(json.dumps({"image": location.source, "path": location.path}))


def _is_there(source: str) -> bool:
    """Tell whether something that may hold an image has this name: no directory. Its contents are not looked at."""
    mode = _mode(source)
    return mode is not None and not stat.S_ISDIR(mode)


def _mode(path: str) -> Optional[int]:  # noqa: UP045
    """Return the mode of what has this name; None where nothing has, or could have."""
    try:
        return os.stat(path).st_mode  # noqa: PTH116 - see above
    except (OSError, ValueError):
        return None


def _clean(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def open_image(source: Any, *, private: bool = False) -> daxfs.Image:
    """Open an image; read-only where its memory cannot be mapped copy-on-write."""
    if not private:
        return daxfs.open(source)
    try:
        return daxfs.open(source, private=True)
    except (daxfs.FormatError, daxfs.NotFoundError, ConnectionError, TimeoutError, FileNotFoundError):
        # No other mapping has more to say.
        raise
    except (daxfs.DaxfsError, OSError):
        # A device, or a dma-buf: an image that cannot be opened at all fails again, with the reason.
        return daxfs.open(source)


def is_current(image: daxfs.Image) -> bool:
    """Tell whether an image is still the one that its name means, as far as that can be known.

    The memory of an image outlives its holder, and without a holder no name means another one.
    """
    try:
        return image.is_current()
    except (ConnectionError, TimeoutError):
        return True


def find(image: daxfs.Image, path: str) -> daxfs.Image | daxfs.Directory | daxfs.File:
    """Return what lies at a path, the image itself for none; NotFoundError if nothing does."""
    if not path:
        return image
    found: daxfs.Directory | daxfs.File = image / path
    return found


__all__ = ["MARK", "SCHEME", "SCHEMES", "SUFFIX", "Location", "find", "is_current", "locate", "open_image", "stand_for"]
