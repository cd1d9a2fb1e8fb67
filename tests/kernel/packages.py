"""Debian packages that are unpacked into a cache folder instead of being installed.

Cache: $XDG_CACHE_HOME/daxfs, by default ~/.cache/daxfs. Everything in it can be deleted; it is fetched again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from cache import cache_dir, only_one

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Apt", "UnavailableError", "cache_dir", "check_tools", "only_one", "release", "run", "unpack", "update"]

RETRIES = ["-q", "-o", "Acquire::Retries=3"]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class UnavailableError(Exception):
    """Something cannot be had on this machine; the message says why and what would help."""


def run(*command: str, cwd: Path | None = None) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise UnavailableError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def check_tools(*, otherwise: str) -> None:
    """Raises where packages cannot be fetched; `otherwise` says what the user can do instead."""
    for tool in ("apt-get", "apt-cache", "dpkg"):
        if not shutil.which(tool):
            raise UnavailableError(f"no {tool}: {otherwise}")


def unpack(names: list[str], folder: Path, is_there: Callable[[], object], options: list[str] | None = None) -> None:
    """Download packages and unpack them beside `folder`, then rename: an interrupted run leaves nothing half done.

    One process at a time does so: where another one was first, what it made `is_there`, and stays.
    """
    with only_one(folder.with_name(f".{folder.name}.lock"), folder.name):
        if not is_there():
            unpack_alone(names, folder, options)


def unpack_alone(names: list[str], folder: Path, options: list[str] | None) -> None:
    print(f"{Path(sys.argv[0]).name}: downloading {' '.join(names)} to {folder}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as scratch:
        # As root, apt would warn that its sandbox user cannot write here.
        sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        run("apt-get", *RETRIES, *sandbox, *(options or []), "download", *names, cwd=Path(scratch))
        for archive in Path(scratch).glob("*.deb"):
            run("dpkg", "-x", str(archive), f"{scratch}/unpacked")
        shutil.rmtree(folder, ignore_errors=True)
        Path(scratch, "unpacked").rename(folder)


def update() -> None:
    """Bring apt's lists up to date, which needs root."""
    run("apt-get", *RETRIES, "update")


def release() -> dict[str, str]:
    """What /etc/os-release says of the distribution."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines)
    return {name: value.strip("\"'") for name, _, value in pairs}


class Apt:
    """apt-get with lists and state of its own: it changes nothing of the system and counts no package as installed."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        for folder in ("lists/partial", "cache/archives/partial", "none"):
            (scratch / folder).mkdir(parents=True)
        (scratch / "status").touch()
        self.options = [*RETRIES, "-o", "APT::Sandbox::User="]
        for key, name in (("State::Lists", "lists"), ("State::status", "status"), ("Cache", "cache")):
            self.options += ["-o", f"Dir::{key}={scratch / name}"]

    def get(self, *arguments: str) -> str:
        return run("apt-get", *self.options, *arguments, cwd=self.scratch)

    def mirror(self, wanted: str) -> str:
        """Where the system's own sources get this release from."""
        form = "$(REPO_URI) $(RELEASE) $(CODENAME) $(COMPONENT)"
        ask = ["indextargets", "--format", form, "Created-By: Packages"]
        targets = run("apt-get", *ask)
        if not targets.strip():
            # Without lists apt names no targets: they are read into our own.
            self.get("update")
            targets = self.get(*ask)
        for line in targets.splitlines():
            uri, suite, name, component = line.split()
            if component == "main" and wanted in (suite, name):
                return uri
        raise UnavailableError(f"apt is configured for no mirror of {wanted} main")

    def use_only(self, mirror: str, suites: list[str]) -> None:
        """From now on, these suites of this mirror."""
        lines = [f"deb [signed-by={KEYRING}] {mirror} {suite} main\n" for suite in suites]
        sources = self.scratch / "sources.list"
        sources.write_text("".join(lines))
        self.options += ["-o", f"Dir::Etc::SourceList={sources}", "-o", f"Dir::Etc::SourceParts={self.scratch}/none"]
        self.get("update")
