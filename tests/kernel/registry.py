#!/usr/bin/env python3
"""Find docker-registry: the one that is installed, or Debian's, unpacked into the cache and not installed.

    registry.py         print its path, fetching it first if need be

Where it is installed as a package, systemd starts it; that is why the tests do not do so.
"""

from __future__ import annotations

import shutil
import sys

from packages import UnavailableError, cache_dir, check_tools, unpack, update

PROGRAM = "docker-registry"


def registry() -> str:
    """Path of the program."""
    if installed := shutil.which(PROGRAM):
        return installed
    folder = cache_dir() / "registry"
    program = folder / "usr/bin" / PROGRAM
    if not program.exists():
        check_tools(otherwise=f"install {PROGRAM}")
        try:
            unpack([PROGRAM], folder, program.exists)
        except UnavailableError:
            # The lists may be absent or old.
            update()
            unpack([PROGRAM], folder, program.exists)
    return str(program)


if __name__ == "__main__":
    try:
        print(registry())
    except UnavailableError as why:
        sys.exit(f"registry.py: {why}")
