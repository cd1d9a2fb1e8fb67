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

RETRIES = ["-q", "-o", "Acquire::Retries=3"]


class UnavailableError(Exception):
    """Something cannot be had on this machine; the message says why and what would help."""


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "daxfs"


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


def unpack(names: list[str], folder: Path, options: list[str] | None = None) -> None:
    """Download packages and unpack them beside `folder`, then rename: an interrupted run leaves nothing half done."""
    print(f"{Path(sys.argv[0]).name}: downloading {' '.join(names)} to {folder}", file=sys.stderr, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
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


def suite(name: str) -> list[str]:
    """Options for apt that know only the suite `name` of the mirror that this machine uses.

    The lists are private ones, in the cache: nothing is changed in the machine's own, and no root is needed.
    """
    codename = release().get("VERSION_CODENAME", "")
    wanted = ("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
    mirrors = [line.split() for line in run(*wanted).splitlines()]
    found = [uri for uri, release_name, component in mirrors if (release_name, component) == (codename, "main")]
    if not found:
        raise UnavailableError(f"apt has no lists for {codename} main: run `apt-get update` as root, then try again")
    folder = cache_dir() / f"apt-{name}"
    options = {
        "Dir::Etc::SourceList": f"{folder}/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": f"{folder}/lists",
        "Dir::State::status": f"{folder}/status",
        "Dir::Cache": f"{folder}/cache",
        "APT::Sandbox::User": "",
    }
    line = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    for part in ("lists/partial", "cache/archives/partial"):
        Path(folder, part).mkdir(parents=True, exist_ok=True)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    Path(folder, "sources.list").write_text(f"deb [signed-by={keyring}] {found[0]} {name} main\n")
    Path(folder, "status").write_text("")
    run("apt-get", *RETRIES, *line, "update")
    return line
