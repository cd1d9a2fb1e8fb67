"""Runs single modules of an inference engine out of its wheel; all else of the engine is a stand-in.

A stand-in has every name that is asked of it: classes to inherit from, and functions that do nothing. What is tested is
that the engine's own loader takes ours as it takes its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "scripts/engines.txt"
# Where the wheels are for: they are read, and nothing of theirs that is compiled.
PLATFORM = ["--python-version", "3.11", "--implementation", "cp"]
PLATFORM += [word for tag in ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64") for word in ("--platform", tag)]


def sources(engine: str, folders: Sequence[str]) -> Path:
    """The engine's files below some folders, out of the wheel that the lock names; fetched once on a machine."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import cache
    finally:
        sys.path.pop(0)
    (pin,) = [line for line in LOCK.read_text().splitlines() if line.startswith(f"{engine}==")]

    def fetch(folder: Path) -> None:
        wanted = folder / "wanted.txt"
        wanted.write_text(pin + "\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--only-binary=:all:", *PLATFORM, "-r", str(wanted), "-d", str(folder)]
        subprocess.run(command, check=True, timeout=600)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(tuple(folders))])
        wheel.unlink()

    try:
        found: Path = cache.made("engines", engine, [pin.encode(), *(name.encode() for name in folders)], fetch)
    except (subprocess.SubprocessError, OSError) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"the wheel of {engine} cannot be fetched: {error}")
    return found


class _Anything(type):
    """The type of what stands in: has all attributes, and is a decorator, a value and a type."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.__dict__.get("stands_in"):
            # A decorator without arguments, or with them.
            return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else cls
        return super().__call__(*args, **kwargs)

    def __or__(cls, other: Any) -> Any:
        return Any

    __ror__ = __or__

    def __bool__(cls) -> bool:
        return False

    def __enter__(cls) -> None:
        return None

    def __exit__(cls, *_: object) -> None:
        return None

    def __getitem__(cls, _: Any) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


def stand_in(name: str) -> Any:
    """Make something that stands for anything."""
    return _Anything(name, (), {"stands_in": True})


class _StandIns(MetaPathFinder, Loader):
    def __init__(self, top: Path, engine: str, real: Sequence[str]) -> None:
        self.top, self.engine, self.real = top, engine, real

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.engine:
            return None
        if fullname in self.real:
            place = self.top / fullname.replace(".", "/")
            if place.is_dir():
                init = place / "__init__.py"
                return importlib.util.spec_from_file_location(fullname, init, submodule_search_locations=[str(place)])
            return importlib.util.spec_from_file_location(fullname, place.with_suffix(".py"))
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = stand_in  # type: ignore[method-assign, assignment]


@contextmanager
def engine_of(name: str, real: Sequence[str], folders: Sequence[str]) -> Iterator[None]:
    """Have the engine's modules importable: those of `real` are its own."""
    finder = _StandIns(sources(name, folders), name, real)
    sys.meta_path.insert(0, finder)
    # For the JSON of its command line.
    has_orjson = importlib.util.find_spec("orjson") is not None
    if not has_orjson:
        sys.modules["orjson"] = json
    try:
        yield
    finally:
        if not has_orjson:
            del sys.modules["orjson"]
        sys.meta_path.remove(finder)
        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            del sys.modules[module]
