"""Packs images, and holds one in memory while others use it."""

# ruff: noqa: S603
from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.command import CommandError
from harness.result import size

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Programs:
    """The programs of the project, as built."""

    pack: Path
    daxfs: Path
    bench: Path


@dataclass(frozen=True)
class Held:
    """An image in sealed memory that this process holds."""

    fd: int
    summary: dict[str, Any]

    @property
    def env(self) -> dict[str, str]:
        """Tells a child that inherits the descriptor where the image is."""
        return {"DAXFS_IMAGE": f"fd:{self.fd}"}


def pages(summary: dict[str, Any]) -> str:
    """Which pages the packer got, in words."""
    got = summary["pages"]
    return f"{size(got['huge_bytes'])} of {size(summary['image_bytes'])} in 2 MiB pages" if got else "on a disk"


def summary_of(text: str) -> dict[str, Any]:
    """Parse the summary that `--json` has printed."""
    return json.loads(text[text.index("{") :])


@contextmanager
def held(programs: Programs, source: Path, *options: str) -> Iterator[Held]:
    """Pack `source` into a memfd and hold it. `daxfs-pack` becomes `cat`, which ends when its input does."""
    command = [str(programs.pack), str(source), *options, "--into", "memfd", "--json", "--", "cat"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    with process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line == "}\n":
                break
        if not lines or lines[-1] != "}\n":
            raise CommandError(f"{' '.join(command)}\n{''.join(lines)}")
        descriptors = Path(f"/proc/{process.pid}/fd")
        memfds = [fd for fd in descriptors.iterdir() if str(fd.readlink()).startswith("/memfd:daxfs")]
        fd = os.open(memfds[0], os.O_RDONLY)
        process.stdin.close()
    try:
        yield Held(fd, summary_of("".join(lines)))
    finally:
        os.close(fd)
