#!/usr/bin/env python3
"""The cache folder: what takes long to make and belongs to no clone is made once on a machine.

    scripts/cache.py          what lies there
    scripts/cache.py clean    removes it, with the kernels, emulators and drivers that the tests have fetched

Cache: $XDG_CACHE_HOME/daxfs, by default ~/.cache/daxfs. Each folder that `made` makes is named after a hash of
everything that it is made of, so that another clone finds it or makes one of its own beside it. It is made under
another name, by one process at a time, and renamed when it is whole: an interrupted run leaves nothing half done.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEY_LENGTH = 16


def cache_dir() -> Path:
    """Return the folder; it may not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "daxfs"


def key(parts: Iterable[bytes]) -> str:
    """Hash a sequence of parts; how they are cut matters."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:KEY_LENGTH]


@contextmanager
def only_one(path: Path, waiting_for: str) -> Iterator[None]:
    """Hold a lock file; say so when another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"cache: another process makes {waiting_for}: waiting", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made(
    kind: str, name: str, parts: Iterable[bytes], make: Callable[[Path], None], *, root: Path | None = None
) -> Path:
    """Return the folder of these parts, in the cache or below `root`; `make` fills an empty one if there is none."""
    folder = (root or cache_dir()) / kind / f"{name}-{key(parts)}"
    if folder.exists():
        return folder
    with only_one(folder.with_name(f".{folder.name}.lock"), folder.name):
        if folder.exists():
            return folder
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            make(unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        unfinished.rename(folder)
    return folder


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def main() -> int:
    """List, or remove."""
    root = cache_dir()
    if sys.argv[1:] == ["clean"]:
        shutil.rmtree(root, ignore_errors=True)
        print(f"cache: removed {root}")
        return 0
    if sys.argv[1:]:
        print("usage: scripts/cache.py [clean]", file=sys.stderr)
        return 2
    for folder in sorted(path for path in root.glob("*/*") if path.is_dir()):
        print(f"{size(folder) / 1e6:8.0f} MB  {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
