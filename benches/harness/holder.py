"""Runs a holder, and talks to it as a user does."""

# ruff: noqa: S603
from __future__ import annotations

import json
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.command import CommandError, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.image import Programs

PATIENCE = 60.0


@dataclass(frozen=True)
class Holder:
    """A running `daxfs serve`."""

    programs: Programs
    socket: Path
    pid: int

    def daxfs(self, verb: str, *arguments: str | Path) -> str:
        """Run a verb of the holder, and give what it prints."""
        return run([self.programs.daxfs, verb, *arguments, "--socket", self.socket]).stdout

    def load(self, name: str, source: Path, *options: str) -> dict[str, Any]:
        """Load an image, and give what the holder says of it."""
        return json.loads(self.daxfs("load", name, source, *options, "--json"))

    def images(self) -> dict[str, dict[str, Any]]:
        """List what is held, by name."""
        return {image["name"]: image for image in json.loads(self.daxfs("ps", "--json"))["images"]}

    def address(self, name: str) -> str:
        """Name an image for everybody who opens it."""
        return f"daxfs+unix://{self.socket}/{name}"


@contextmanager
def serving(programs: Programs) -> Iterator[Holder]:
    """Start a holder without images, and end it afterwards. Its log is written as one in use is, to a file."""
    # Not below the place for data: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="daxfs-bench-") as name, tempfile.TemporaryFile("w+") as log:
        socket = Path(name) / "s"
        command = [str(programs.daxfs), "serve", "--socket", str(socket)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        try:
            deadline = time.monotonic() + PATIENCE
            while not socket.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            holder = Holder(programs, socket, process.pid)
            try:
                holder.daxfs("health")
            except CommandError as error:
                log.seek(0)
                raise CommandError(f"{' '.join(command)}\n{log.read()}{error}") from error
            yield holder
        finally:
            process.terminate()
            process.wait()
