#!/usr/bin/env python3
"""Locks the Python environments: of the short lists *.in, exact versions with hashes for Python 3.9 and later.

    scripts/lock.py              brings the locks in line with changed lists; what is not concerned stays where it is
    scripts/lock.py --upgrade    the newest versions of everything
    scripts/lock.py --into DIR   writes them there instead, under the same names

Each version that moved is a line of output. The resolver is uv, of the version in scripts/tools.txt. Lists share
versions: each is resolved within the locks of those before it.
"""

# ruff: noqa: S603
from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import environment
from environment import ROOT

OLDEST_PYTHON = "3.9"
# In this order. None of them names a place to install from: that is for pip's own settings to say.
LOCKS = ("scripts/torch-full", "scripts/torch", "scripts/requirements", "examples/demo/requirements")
LOCKS += ("benches/requirements", "tests/kerf/requirements", "scripts/packaging", "scripts/tools")
LOCKS += ("scripts/dist", "scripts/test-dist", "scripts/book")
LISTS = {"scripts/torch-full": "scripts/torch.in"}
# What torch needs of NVIDIA, and no more: without it (scripts/torch_cpu.py) torch computes on the processor.
CUDA = re.compile(r"(nvidia|cuda)-.*|triton")
# Of parts of kerf that no test uses; there are no wheels of it, and nothing is built.
UNUSED = ["pylibfdt"]
# In an environment that has the layer torch beside it.
BESIDE = {"scripts/requirements": ["torch"]}
PIN = re.compile(r"^([\w.-]+)==(\S+)(?: ; (.*?))? \\$", re.MULTILINE)


def pins(text: str) -> dict[str, dict[str, str]]:
    """Return the versions in a lock, by package and by the condition that they are for."""
    found: dict[str, dict[str, str]] = {}
    for name, version, condition in PIN.findall(text):
        found.setdefault(name, {})[condition] = version
    return found


def shown(versions: dict[str, str]) -> str:
    """Return the versions of one package, the newest Python's last."""
    return ", ".join(dict.fromkeys(versions.values())) or "none"


def moves(old: str, new: str) -> list[str]:
    """Return a line for each package whose versions are others."""
    before, after = pins(old), pins(new)
    names = sorted(before.keys() | after.keys())
    pairs = ((name, shown(before.get(name, {})), shown(after.get(name, {}))) for name in names)
    return [f"{name} {was} -> {now}" for name, was, now in pairs if was != now]


def compile_lock(name: str, into: Path, upgrade: bool, excludes: list[str]) -> None:
    """Write one lock, within those that are written already."""
    uv = environment.made("tools") / "bin/uv"
    lock = into / f"{name}.txt"
    command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes"]
    command += ["--no-config", "--custom-compile-command", "make lock", "--annotation-style", "line"]
    command += ["--output-file", lock]
    command += ["--upgrade"] if upgrade else []
    for earlier in LOCKS[: LOCKS.index(name)]:
        command += ["--constraints", into / f"{earlier}.txt"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(excludes))
        file.flush()
        command += ["--excludes", file.name]
        words = [str(word) for word in [*command, LISTS.get(name, f"{name}.in")]]
        if subprocess.run(words, cwd=ROOT, check=False).returncode:
            raise SystemExit(f"lock: {name}.in cannot be locked")


def main() -> int:
    """Lock all lists in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    parser.add_argument("--into", type=Path, default=ROOT, metavar="DIR", help="write the locks there")
    a = parser.parse_args()
    into = a.into.resolve()
    cuda: list[str] = []
    for name in LOCKS:
        committed, lock = ROOT / f"{name}.txt", into / f"{name}.txt"
        old = committed.read_text() if committed.exists() else ""
        lock.parent.mkdir(parents=True, exist_ok=True)
        if lock != committed and old:
            shutil.copyfile(committed, lock)
        excludes = [*UNUSED, *BESIDE.get(name, []), *(cuda if name == "scripts/torch" else [])]
        compile_lock(name, into, a.upgrade, excludes)
        new = lock.read_text()
        if name == "scripts/torch-full":
            cuda = [package for package in pins(new) if CUDA.fullmatch(package)]
        for line in moves(old, new):
            print(f"lock: {os.path.relpath(lock, ROOT)}: {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
