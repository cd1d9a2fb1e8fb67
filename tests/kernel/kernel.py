#!/usr/bin/env python3
"""Fetch a Linux kernel that has udmabuf and dma-heap, and unpack it into a cache folder.

    kernel.py           print the folder, fetching the kernel first if it is not there yet

Nothing is installed. The kernel is Debian's 6.12: in Debian 12 it comes from the security suite, in Debian 13
it is the standard one. Its package name carries a version that moves with every security update, so the name
is asked of apt each time and never written down.

Cache: $XDG_CACHE_HOME/daxfs/kernel, by default ~/.cache/daxfs/kernel (about 115 MB). Delete it to get a newer
kernel. DAXFS_VM_KERNEL names another folder in which a kernel package was unpacked.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from packages import UnavailableError, cache_dir, check_tools, unpack, update

META_PACKAGES = ("linux-image-6.12-amd64", "linux-image-amd64")
# Debian's 6.1 has neither device.
OLDEST = (6, 12)
NEEDED_OPTIONS = ("CONFIG_UDMABUF=y", "CONFIG_DMABUF_HEAPS_SYSTEM=y")


def boot_image(folder: Path) -> Path | None:
    """The bzImage in an unpacked kernel package."""
    found = sorted([*folder.glob("boot/vmlinuz-*"), *folder.glob("usr/lib/modules/*/vmlinuz")])
    return found[-1] if found else None


def missing_options(folder: Path) -> list[str]:
    """Options that the kernel's configuration file lacks; empty where the package has no such file."""
    configs = [*folder.glob("boot/config-*"), *folder.glob("usr/lib/modules/*/config")]
    if not configs:
        return []
    lines = set(configs[0].read_text().splitlines())
    return [option for option in NEEDED_OPTIONS if option not in lines]


def package_behind(meta: str) -> str | None:
    """Name of the versioned package that a meta package depends on, if it is new enough."""
    asked = subprocess.run(["apt-cache", "depends", meta], capture_output=True, text=True, check=False)
    for line in asked.stdout.splitlines():
        kind, _, name = line.strip().partition(": ")
        version = re.match(r"linux-image-(\d+)\.(\d+)", name)
        if kind == "Depends" and version and (int(version[1]), int(version[2])) >= OLDEST:
            return name
    return None


def current_package() -> str:
    """The package to download; apt's lists are brought up to date once if they know none."""
    for attempt in ("as is", "after update"):
        for meta in META_PACKAGES:
            if name := package_behind(meta):
                return name
        if attempt == "as is":
            if os.geteuid() != 0:
                break
            update()
    raise UnavailableError("apt knows no linux-image package: run `apt-get update` as root, then try again")


def fetch() -> Path:
    """The folder with the unpacked kernel, downloaded if need be."""
    if named := os.environ.get("DAXFS_VM_KERNEL"):
        if not boot_image(Path(named)):
            raise UnavailableError(f"DAXFS_VM_KERNEL={named}: no boot/vmlinuz-* in there")
        return Path(named)
    if platform.machine() != "x86_64":
        raise UnavailableError(f"the guest kernel is x86-64 only, this machine is {platform.machine()}")
    folder = cache_dir() / "kernel"
    if not boot_image(folder):
        wanted = " and ".join(NEEDED_OPTIONS)
        check_tools(otherwise=f"unpack a kernel with {wanted} yourself, name it in DAXFS_VM_KERNEL")
        unpack([current_package()], folder, lambda: boot_image(folder))
    if lacking := missing_options(folder):
        raise UnavailableError(f"the kernel in {folder} lacks {' and '.join(lacking)}; delete it to fetch another")
    return folder


if __name__ == "__main__":
    try:
        print(fetch())
    except UnavailableError as why:
        sys.exit(f"kernel.py: {why}")
