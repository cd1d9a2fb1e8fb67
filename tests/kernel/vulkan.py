#!/usr/bin/env python3
"""Fetch Mesa's software Vulkan driver (lavapipe), and unpack it into a cache folder.

    vulkan.py           print the environment that makes programs use it, fetching it first if it is not there yet
    vulkan.py CMD...    run a command in that environment

Nothing is installed, and any user may do it. The driver must be Mesa 24.1 or later, the first that imports dma-bufs:
Debian 13 has it, for Debian 12 it comes from the backports suite of the mirror that apt is configured for.

Cache: $XDG_CACHE_HOME/daxfs/vulkan, by default ~/.cache/daxfs/vulkan (about 200 MB, most of it LLVM). Delete it to get
a newer driver.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packages import Apt, UnavailableError, cache_dir, only_one, release, run

PACKAGES = ("mesa-vulkan-drivers", "libvulkan1")
# Every system has these, and a second copy of libc would not fit the dynamic linker.
PRESENT = re.compile(
    r"(libc6|libc-bin|libcrypt1|gcc-\d+-base|libgcc-s1|debconf|dpkg|tar|ucf|sensible-utils|(lib)?perl.*)$"
)
SUITES = {"bookworm": ["bookworm", "bookworm-backports"]}


def environment() -> dict[str, str]:
    """Variables for a program that is to use the driver; fetches it if it is not there."""
    folder = cache_dir() / "vulkan"
    manifest = folder / "lavapipe.json"
    if not manifest.exists():
        # Of two processes the second finds what the first has made.
        with only_one(folder.with_name(f".{folder.name}.lock"), "the Vulkan driver"):
            if not manifest.exists():
                download(folder)
    # Loaders before 1.3.207 know the second name only.
    return {
        "VK_DRIVER_FILES": str(manifest),
        "VK_ICD_FILENAMES": str(manifest),
        "LD_LIBRARY_PATH": str(folder / libraries()),
    }


def libraries() -> str:
    """Where Debian puts shared libraries."""
    return f"usr/lib/{platform.machine()}-linux-gnu"


def codename() -> str:
    """The release of this machine, if it is Debian."""
    if release().get("ID") != "debian" or "VERSION_CODENAME" not in release():
        wanted = "a Vulkan driver that imports dma-bufs, for example Mesa 24.1 or later"
        raise UnavailableError(f"this machine is not Debian: install {wanted} yourself")
    return release()["VERSION_CODENAME"]


def download(folder: Path) -> None:
    """Download and unpack beside `folder`, then rename: an interrupted run leaves nothing half done."""
    for tool in ("apt-get", "dpkg"):
        if not shutil.which(tool):
            raise UnavailableError(f"no {tool}: install a Vulkan driver that imports dma-bufs (Mesa 24.1) yourself")
    name = codename()
    suites = SUITES.get(name, [name])
    print(f"vulkan.py: downloading Mesa's lavapipe (about 60 MB) to {folder}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="vulkan-") as made:
        scratch = Path(made)
        apt = Apt(scratch)
        apt.use_only(apt.mirror(name), suites)
        plan = apt.get("--simulate", "--no-install-recommends", "--target-release", suites[-1], "install", *PACKAGES)
        wanted = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
        apt.get("--target-release", suites[-1], "download", *(p for p in wanted if not PRESENT.match(p)))
        unpacked = scratch / "unpacked"
        for archive in sorted(scratch.glob("*.deb")):
            run("dpkg", "-x", str(archive), str(unpacked))
        tidy(unpacked)
        driver = unpacked / libraries() / "libvulkan_lvp.so"
        if not driver.exists():
            raise UnavailableError(f"Debian's {PACKAGES[0]} holds no {driver.name} for {platform.machine()}")
        icd = {"api_version": "1.3.0", "library_path": str(folder / libraries() / driver.name)}
        text = json.dumps({"file_format_version": "1.0.0", "ICD": icd})
        (unpacked / "lavapipe.json").write_text(text)
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)


def tidy(unpacked: Path) -> None:
    """One folder for all libraries, and nothing that is not needed."""
    target = unpacked / libraries()
    for library in (unpacked / libraries().removeprefix("usr/")).glob("*"):
        if not (target / library.name).exists():
            shutil.move(library, target / library.name)
    for driver in target.glob("libvulkan_*"):
        if driver.name != "libvulkan_lvp.so":
            driver.unlink()
    for folder in ("etc", "lib", "usr/share", "usr/bin", "usr/sbin", "var"):
        shutil.rmtree(unpacked / folder, ignore_errors=True)


def main() -> int:
    try:
        variables = environment()
    except UnavailableError as why:
        print(f"vulkan.py: {why}", file=sys.stderr)
        return 77
    command = sys.argv[1:]
    if not command:
        print("\n".join(f"{name}={value}" for name, value in variables.items()))
        return 0
    return subprocess.run(command, env={**os.environ, **variables}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
