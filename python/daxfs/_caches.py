"""``daxfs.caches``: what compilers keep of a model, out of its image, where they look for it.

They write to these directories as well, so each gets a copy. It is named after its contents, and the next process that
wants these finds it.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Union

import daxfs
from daxfs import _files, _locate

# The directory of an image that has them, one for each name.
FOLDER = _files.CACHES_FOLDER
# Of Triton: the files of a kernel, by their absolute paths.
_GROUP = "__grp__"
# Changes with what a copy is made of.
_FORM = b"daxfs caches 1"


class _Cache(NamedTuple):
    """Where a library looks for its cache."""

    variable: str
    # Where the cache lies below what the variable names.
    below: str = ""


_PLACES = (
    _Cache("TRITON_CACHE_DIR"),
    _Cache("TORCHINDUCTOR_CACHE_DIR"),
    _Cache("FLASHINFER_WORKSPACE_BASE", ".cache/flashinfer"),
    _Cache("VLLM_CACHE_ROOT"),
)
CACHES: Mapping[str, _Cache] = dict(zip(_files.CACHES, _PLACES))

_Directory = Union[str, "os.PathLike[str]"]


def caches(
    image: daxfs.Image | _Directory, names: Iterable[str] | None = None, *, directory: _Directory | None = None
) -> dict[str, str]:
    """Do what daxfs.caches says."""
    if isinstance(image, daxfs.Image):
        return _caches(image, names, directory)
    with _locate.open_image(image) as opened:
        return _caches(opened, names, directory)


def _caches(image: daxfs.Image, names: Iterable[str] | None, directory: _Directory | None) -> dict[str, str]:
    there: Any = image / FOLDER if FOLDER in image.directory() else {}
    if not isinstance(there, daxfs.Directory):
        there = {}
    has = {name for name in there if isinstance(there[name], daxfs.Directory)}
    if names is None:
        wanted = [name for name in CACHES if name in has]
    else:
        wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in CACHES:
            msg = f"no cache is known by the name {name!r}: there are {', '.join(CACHES)}"
            raise ValueError(msg)
        if name not in has:
            msg = f"the image has no directory {FOLDER}/{name}; {FOLDER} has {', '.join(sorted(has)) or 'none'}"
            raise daxfs.NotFoundError(msg)
    base = _base(directory) if wanted else Path()
    variables = {}
    for name in wanted:
        # Under its own path: it may be a link to another directory of the image.
        files = sorted(_files.below(image, there[name].path))
        if not files:
            msg = f"{FOLDER}/{name} of the image has no file"
            raise daxfs.NotFoundError(msg)
        variables[CACHES[name].variable] = str(_copied(files, name, base))
    # All of them, or none.
    os.environ.update(variables)
    return variables


def _base(directory: _Directory | None) -> Path:
    """Return the directory of the copies, in which nobody else can put any."""
    if directory is None:
        top = os.environ.get("XDG_CACHE_HOME", "")
        base = (Path(top) if top.startswith("/") else Path.home() / ".cache") / "daxfs" / "caches"
    else:
        base = Path(directory)
    base = base.resolve()
    # Modes are said for each: of those that mkdir(parents=True) makes the mask alone decides.
    for folder in (*reversed(base.parents), base):
        folder.mkdir(mode=0o700, exist_ok=True)
    for folder in base.parents:
        _check_around(folder)
    _check_ours(base)
    return base


def _check_around(folder: Path) -> None:
    """Refuse a directory in which others can put something else in place of what is below."""
    about = folder.stat()
    mode = stat.S_IMODE(about.st_mode)
    # Where it is sticky only the owner of what lies there can.
    others = 0o002 if _is_own_group(about.st_gid) else 0o022
    is_open = mode & others and not mode & stat.S_ISVTX
    if about.st_uid not in (0, os.getuid()) or is_open:
        msg = f"{folder}: others can put something in place of what lies below, and that is run; take another directory"
        raise PermissionError(msg)


def _check_ours(folder: Path) -> None:
    about = folder.stat()
    if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o022:
        msg = f"{folder}: others can write there, and what lies there is run; take a directory of your own"
        raise PermissionError(msg)


def _is_own_group(gid: int) -> bool:
    """Whether it is the group that many systems make for one user alone, whose mask lets the group write."""
    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}


def _copied(files: list[tuple[str, daxfs.File]], name: str, base: Path) -> Path:
    """Return the copy of a cache, made if it is not there."""
    target = base / f"{name}-{_key(files)}"
    if target.exists():
        _check_ours(target)
        return target
    # Nobody sees a part of it.
    part = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=base))
    try:
        for path, file in files:
            inner = PurePosixPath(CACHES[name].below, path)
            own = part / inner
            own.parent.mkdir(parents=True, exist_ok=True)
            if own.name.startswith(_GROUP):
                own.write_bytes(_moved(file.read_bytes(), target / inner.parent))
            else:
                _files.write(file, own)
            # Compilers write to what they have.
            own.chmod(stat.S_IMODE(file.mode) & 0o700 | stat.S_IRUSR | stat.S_IWUSR)
        part.rename(target)
    except OSError:
        # Another process was faster.
        if not target.exists():
            raise
        _check_ours(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _key(files: Iterable[tuple[str, daxfs.File]]) -> str:
    digest = hashlib.blake2b(_FORM, digest_size=16)
    for path, file in files:
        name = os.fsencode(path)
        digest.update(len(name).to_bytes(8, "little") + name + (file.mode & 0o100).to_bytes(2, "little"))
        digest.update(file.size.to_bytes(8, "little") + bytes.fromhex(_files.digest(file)))
    return digest.hexdigest()


def _moved(group: bytes, folder: Path) -> bytes:
    """Have a group of Triton's name the files that lie beside it now; what has another form stays as it is."""
    try:
        found = json.loads(group)
        children = {name: str(folder / Path(path).name) for name, path in found["child_paths"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return group
    return json.dumps({**found, "child_paths": children}).encode()


__all__ = ["CACHES", "FOLDER", "caches"]
