"""Files of images as files of the file system, for libraries that take paths: ``Image.path`` and ``Image.materialize``.

What ``path`` makes lies in a directory of this process, in memory where the system has a place for that, once for equal
contents. It is removed when the process ends; what a process leaves that is killed is removed by the next one.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

import daxfs
from daxfs import _locate

_Path = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]

# Endings of files that hold weights.
WEIGHTS: tuple[str, ...] = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".ggml",
    ".onnx",
    ".onnx_data",
    ".h5",
    ".msgpack",
)
WEIGHTS += (".npz", ".tflite", ".pb", ".mlmodel")

# Directories of an image with caches of compilers, which daxfs.caches copies; libraries of models have no use for them.
CACHES: tuple[str, ...] = ("triton", "inductor", "flashinfer", "vllm")
CACHES_FOLDER = "caches"

_LOCK = ".lock"
# Bytes of a file that are hashed at a time.
_PIECE = 1 << 20


def is_weights(path: str) -> bool:
    """Tell by its name whether a file holds weights."""
    return path.lower().endswith(WEIGHTS)


def is_cache(path: str) -> bool:
    """Tell by its path in the image whether a file belongs to a cache of a compiler."""
    return path.startswith(tuple(f"{CACHES_FOLDER}/{name}/" for name in CACHES))


def _source(file: daxfs.File) -> daxfs.File | daxfs.Original:
    """Return a file as it was before packing: only files of tensors may differ from that."""
    return file.original() if file.path.endswith(".safetensors") else file


def digest(file: daxfs.File) -> str:
    """Return what tells the contents of a file, as they were before packing, from others."""
    digest = hashlib.blake2b(digest_size=16)
    with _source(file).open(buffering=0) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def write(file: daxfs.File, target: Path) -> None:
    """Write a file as it was before packing; FileExistsError if something is there."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _source(file).write_to(fd)
        os.fchmod(fd, stat.S_IMODE(file.mode) & 0o777 | stat.S_IRUSR)
    except BaseException:
        target.unlink()
        raise
    finally:
        os.close(fd)


def below(image: daxfs.Image, top: str) -> Iterator[tuple[str, daxfs.File]]:
    """All files below a directory, by their paths from there."""
    place = f"{top}/" if top else ""
    for path in image:
        if path.startswith(place):
            yield path[len(place) :], image[path]


def materialize(image: daxfs.Image, directory: _Path, exclude_weights: bool, top: str = "") -> list[str]:
    """Write files into a directory, which is made if need be, and return their paths."""
    target = Path(os.fsdecode(directory))
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for path, file in below(image, top):
        if exclude_weights and is_weights(path):
            continue
        own = target / path
        own.parent.mkdir(parents=True, exist_ok=True)
        write(file, own)
        written.append(path)
    return written


class Runtime:
    """The directory of this process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        base = _base()
        _sweep(base)
        lock = None
        while lock is None:
            self.folder = Path(tempfile.mkdtemp(prefix=_locate.RUNTIME, dir=base))
            # Another process that begins may take a directory whose lock nobody has yet for one that is left.
            lock = _locked(self.folder, os.O_CREAT)
        self.lock = lock
        self.made: weakref.WeakKeyDictionary[daxfs.Image, dict[str, str]] = weakref.WeakKeyDictionary()
        # Folders that stand for images, by their names.
        self.stand_ins: dict[str, tuple[daxfs.Image, str]] = {}
        atexit.register(self.remove)

    def remove(self) -> None:
        """Remove the directory, but not as a child that was forked with it."""
        if os.getpid() == self.pid:
            shutil.rmtree(self.folder, ignore_errors=True)

    def file(self, file: daxfs.File) -> str:
        """Return the path of a file with these contents and this name."""
        folder = self.folder / digest(file)
        target = folder / file.name
        if not target.exists():
            folder.mkdir(exist_ok=True)
            # Nobody sees a part of it.
            part = folder / f".{threading.get_ident()}"
            write(file, part)
            part.chmod(0o400)
            part.rename(target)
        return str(target)

    def directory(self, image: daxfs.Image, top: str) -> str:
        """Return the path of a directory with all files below but weights and caches of compilers."""
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / (top.rpartition("/")[2] or "image")
        folder.mkdir()
        for path, file in below(image, top):
            # Who asks for a cache gets it.
            if is_weights(path) or (not top.strip("/") and is_cache(file.path)):
                continue
            own = folder / path
            own.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.file(file), own)
        return str(folder)


def _base() -> Path:
    # A directory of an own name is made there.
    for name in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):  # noqa: S108
        if name and Path(name).is_absolute() and os.access(name, os.W_OK | os.X_OK):
            return Path(name)
    return Path(tempfile.gettempdir())


def _locked(folder: Path, flags: int = 0) -> int | None:
    """Lock a directory's file, for as long as the descriptor is open; None if another process has it."""
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            return None
        raise
    return fd


def _sweep(base: Path) -> None:
    """Remove what processes of this user have left that were killed."""
    for folder in base.glob(f"{_locate.RUNTIME}*"):
        try:
            if folder.lstat().st_uid != os.getuid():
                continue
            fd = _locked(folder)
        except OSError:
            # Being made, or gone.
            continue
        if fd is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(fd)


_runtime: Runtime | None = None
making = threading.RLock()
os.register_at_fork(before=making.acquire, after_in_parent=making.release, after_in_child=making.release)


def runtime() -> Runtime:
    """Return the directory of this process, made when it is first asked for."""
    global _runtime  # noqa: PLW0603 - one for the process
    with making:
        if _runtime is None or _runtime.pid != os.getpid():
            _runtime = Runtime()
        return _runtime


def path(image: daxfs.Image, name: _Path | None) -> str:
    """Return a path in the file system for a file or a directory of an image."""
    wanted = "" if name is None else _text(name)
    found: Any = image / wanted if wanted else image.directory()
    with making:
        own = runtime()
        made = own.made.setdefault(image, {})
        if wanted not in made:
            is_file = isinstance(found, daxfs.File)
            # What is behind a link is listed by its own path.
            made[wanted] = own.file(found) if is_file else own.directory(image, found.path)
        return made[wanted]


def _text(name: _Path) -> str:
    text = os.fsdecode(name)
    return "/".join(part for part in text.split("/") if part not in ("", "."))


__all__ = ["CACHES", "CACHES_FOLDER", "WEIGHTS", "Runtime", "below", "digest", "is_cache", "is_weights"]
__all__ += ["making", "materialize", "path", "runtime", "write"]
