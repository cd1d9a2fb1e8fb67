"""Files of an image as streams: what ``daxfs.File.open()`` returns."""

from __future__ import annotations

import fcntl
import io
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from daxfs._daxfs import File, Original

_READING = ("r", "rt", "rb", "br", "tr")


class Stream(io.RawIOBase):
    """The bytes of a file, at a position of its own. It keeps the image's memory; threads take turns."""

    mode = "rb"

    def __init__(self, file: File | Original) -> None:
        super().__init__()
        self._file = file
        self._position = 0
        self.name = file.path

    def _open(self) -> File | Original:
        if self.closed:
            msg = "I/O operation on closed file"
            raise ValueError(msg)
        return self._file

    def readable(self) -> bool:
        """Return True."""
        self._open()
        return True

    def seekable(self) -> bool:
        """Return True."""
        self._open()
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Copy bytes into a writable buffer, and return how many."""
        count = self._open().readinto_at(self._position, buffer)
        self._position += count
        return count

    def readall(self) -> bytes:
        """Return what is left, copied once."""
        rest = self._open().read_at(self._position)
        self._position += len(rest)
        return rest

    def write(self, _data: object, /) -> int:
        """Raise io.UnsupportedOperation."""
        msg = "files of an image are read-only"
        raise io.UnsupportedOperation(msg)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position, which may be behind the end: nothing is read there."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._open().size}.get(whence)
        if start is None:
            msg = f"whence is 0, 1 or 2, not {whence}"
            raise ValueError(msg)
        if start + offset < 0:
            msg = f"negative seek position {start + offset}"
            raise ValueError(msg)
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        self._open()
        return self._position


def open_file(  # noqa: PLR0913, PLR0917 - those of io.open, and one
    file: File | Original,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    descriptor: bool,
) -> Any:
    """Open a file of an image as ``io.open`` does one of the file system."""
    if mode not in _READING:
        msg = f"files of an image are read-only: mode is 'rb' or 'r', not {mode!r}"
        raise ValueError(msg)
    is_text = "b" not in mode
    if not is_text and (encoding, errors, newline) != (None, None, None):
        msg = "encoding, errors and newline are for text: mode 'r'"
        raise ValueError(msg)
    if is_text and buffering == 0:
        msg = "text is always buffered"
        raise ValueError(msg)
    encoding = encoding or "utf-8"
    if descriptor and is_text:
        # What it refuses is refused before the contents are copied.
        io.TextIOWrapper(io.BytesIO(), encoding, errors, newline)
    raw = io.FileIO(_descriptor(file), "rb") if descriptor else Stream(file)
    try:
        if buffering == 0:
            return raw
        buffered = io.BufferedReader(raw, io.DEFAULT_BUFFER_SIZE if buffering < 2 else buffering)
        if not is_text:
            return buffered
        text: Any = io.TextIOWrapper(buffered, encoding, errors, newline)
        text.mode = mode
    except BaseException:
        raw.close()
        raise
    return text


def _descriptor(file: File | Original) -> int:
    """Return a new descriptor of a sealed copy of the contents."""
    # A name has at most 249 bytes, and may end within a character.
    name = os.fsdecode(f"daxfs:{file.name}".encode("utf-8", "surrogateescape")[:200])
    copy = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        file.write_to(copy)
        # F_ADD_SEALS with SEAL, SHRINK, GROW and WRITE: Python names them since 3.9 only where its libc did.
        fcntl.fcntl(copy, getattr(fcntl, "F_ADD_SEALS", 1033), 0xF)
        os.lseek(copy, 0, os.SEEK_SET)
    except BaseException:
        os.close(copy)
        raise
    return copy
