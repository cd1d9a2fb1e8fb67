#!/usr/bin/env python3
"""Find QEMU: the one that is installed, or one with volatile CXL memory.

    emulator.py         print the command line of a QEMU that emulates CXL memory, fetching it first if need be

CXL type-3 devices with volatile memory work from QEMU 10 on. Debian 12 has 7.2, and 10 among its backports: that
one is unpacked beside the installed one, whose libraries it uses. Nothing is installed.

Cache: $XDG_CACHE_HOME/daxfs/qemu, by default ~/.cache/daxfs/qemu (about 86 MB). DAXFS_VM_CXL_QEMU is the command
line of another QEMU.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packages import Apt, UnavailableError, cache_dir, check_tools, release, unpack

PROGRAM = "qemu-system-x86_64"
CXL_SINCE = 10
PACKAGES = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"]


def installed() -> list[str]:
    """Command line of the machine's own QEMU."""
    program = shutil.which(PROGRAM)
    if not program:
        raise UnavailableError(f"no {PROGRAM}: install the package qemu-system-x86")
    return [program]


def version(command: list[str]) -> int:
    """Its major version; an error if it does not even start."""
    try:
        asked = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    except OSError as why:
        raise UnavailableError(f"{command[0]}: {why.strerror}") from why
    found = re.search(r"version (\d+)", asked.stdout)
    if not found:
        raise UnavailableError(f"`{shlex.join(command)} --version` failed: {asked.stderr.strip() or asked.stdout}")
    return int(found[1])


def with_cxl() -> list[str]:
    """Command line of a QEMU that emulates volatile CXL memory, downloaded if need be."""
    if named := os.environ.get("DAXFS_VM_CXL_QEMU"):
        command = shlex.split(named)
        if version(command) < CXL_SINCE:
            raise UnavailableError(f"DAXFS_VM_CXL_QEMU={named}: CXL memory needs QEMU {CXL_SINCE}")
        return command
    own = installed()
    if version(own) >= CXL_SINCE:
        return own
    folder = cache_dir() / "qemu"
    program = folder / "usr/bin" / PROGRAM
    if not program.exists():
        codename = release().get("VERSION_CODENAME")
        advice = f"CXL memory needs QEMU {CXL_SINCE}: name one in DAXFS_VM_CXL_QEMU"
        if codename != "bookworm":
            raise UnavailableError(f"{own[0]} is version {version(own)}; {advice}")
        check_tools(otherwise=advice)
        with tempfile.TemporaryDirectory(prefix="daxfs-apt-") as lists:
            apt = Apt(Path(lists))
            apt.use_only(apt.mirror(codename), [f"{codename}-backports"])
            unpack(PACKAGES, folder, program.exists, apt.options)
    data = [folder / "usr/share/qemu", folder / "usr/share/seabios", "/usr/share/qemu", "/usr/lib/ipxe/qemu"]
    command = [str(program), *(word for place in data for word in ("-L", str(place)))]
    version(command)
    return command


if __name__ == "__main__":
    try:
        print(shlex.join(with_cxl()))
    except UnavailableError as why:
        sys.exit(f"emulator.py: {why}")
