"""The kernel's own DAXFS. It is a module that is no part of this project: DAXFS_MODULE names one that was built for
the guest's kernel, and then the tests that mount images run, too. See README.md beside this file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vm import read_module

VARIABLE = "DAXFS_MODULE"


class UnfitError(Exception):
    """The module that was named cannot be loaded; the message says why."""


def named(kernel: Path) -> Path | None:
    """The module to load into a guest with this unpacked kernel; None if none was asked for."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    path = Path(text).absolute()
    if not path.is_file():
        raise UnfitError(f"{VARIABLE}={text}: no such file")
    release = built_for(read_module(path))
    if not release:
        raise UnfitError(f"{VARIABLE}={text}: not a kernel module")
    releases = sorted(folder.name for folder in kernel.glob("**/lib/modules/*") if folder.is_dir())
    if release not in releases:
        raise UnfitError(f"{VARIABLE}={text}: built for {release}, the guest's kernel is {' or '.join(releases)}")
    return path


def built_for(binary: bytes) -> str | None:
    """The kernel release that a module names, without which the kernel refuses it."""
    magic = re.search(rb"\0vermagic=([^ \0]+)", binary)
    return magic[1].decode() if magic else None
