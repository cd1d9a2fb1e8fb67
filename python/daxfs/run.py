"""Runs a program that takes images where it takes paths of models: ``python -m daxfs.run script.py ...``.

    python -m daxfs.run script.py llama.daxfs
    python -m daxfs.run -m package.module --model daxfs://llama

It is ``daxfs.install()`` before the program, in this process and in those that it starts with its environment.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import NoReturn

import daxfs

USAGE = "usage: python -m daxfs.run [-m] SCRIPT_OR_MODULE [ARGUMENT...]"


def _fail(text: str) -> NoReturn:
    """Say why nothing is run, with the status that the commands have for that."""
    print(text, file=sys.stderr)
    sys.exit(2)


def main(words: list[str]) -> None:
    """Run what the words say."""
    if words[:1] in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{__doc__}")
        return
    is_module = words[:1] == ["-m"]
    rest = words[1:] if is_module else words
    if not rest or (rest[0].startswith("-") and not is_module):
        _fail(f"{USAGE}\nerror: what is run is missing")
    try:
        daxfs.install()
    except RuntimeError as error:
        _fail(f"error: {error}")
    folder = str(Path(__file__).with_name("_site"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    os.environ["DAXFS_INSTALL"] = "1"
    sys.argv = rest
    # As Python does it for a program, and does not under -P.
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(Path.cwd() if is_module else Path(rest[0]).absolute().parent)
    if is_module:
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(rest[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
