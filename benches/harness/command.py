"""Starts commands, and measures them from outside: time from start to end, and memory while they run."""

# ruff: noqa: S603
from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SAMPLE_SECONDS = 0.001


class CommandError(Exception):
    """A command failed; its own words are in the message."""


@dataclass(frozen=True)
class Run:
    """What a command took and said."""

    seconds: float
    user: float
    system: float
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Memory:
    """The most that a process had at any time, in bytes, as /proc/PID/status says."""

    anonymous: int  # private: RssAnon
    resident: int  # with the files and shared memory that it maps: VmHWM


def _wait(process: subprocess.Popen[bytes], command: Sequence[str], stderr: object) -> tuple[float, float]:
    """Wait for the end, and give the seconds of user and system time."""
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:  # somebody ends this program: what it wrote is about to be removed
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        stderr.seek(0)
        words = stderr.read().decode(errors="replace").strip()
        end = (
            f"ended by {signal.Signals(-process.returncode).name}"
            if process.returncode < 0
            else f"exit status {process.returncode}"
        )
        raise CommandError(f"{' '.join(command)}: {end}\n{words}")
    return usage.ru_utime, usage.ru_stime


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    fds: Sequence[int] = (),
    cwd: Path | None = None,
) -> Run:
    """Run a command to its end, and time it from before its start until it has been waited for."""
    words = [str(word) for word in command]
    environment = {**os.environ, **(env or {})}
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            pass_fds=fds,
            cwd=cwd,
        )
        user, system = _wait(process, words, stderr)
        seconds = time.perf_counter() - started
        stdout.seek(0)
        stderr.seek(0)
        out, err = stdout.read().decode(errors="replace"), stderr.read().decode(errors="replace")
    return Run(seconds, user, system, out, err)


def peak_memory(command: Sequence[str | Path]) -> Memory:
    """Run a command and watch its memory. What grows in its last millisecond may be missed.

    `ru_maxrss` would not do: after fork and exec it starts with the size of the process that forked.
    """
    words = [str(word) for word in command]
    anonymous = resident = 0
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        status = Path(f"/proc/{process.pid}/status")
        program = Path(f"/proc/{process.pid}/exe")
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            try:
                ours = program.samefile(sys.executable)
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            except (FileNotFoundError, ProcessLookupError):
                continue
            # Not yet the command's own memory before exec, none any more at its end.
            if not ours and "RssAnon" in fields:
                anonymous = max(anonymous, int(fields["RssAnon"].split()[0]) * 1024)
                resident = max(resident, int(fields["VmHWM"].split()[0]) * 1024)
            time.sleep(SAMPLE_SECONDS)
        _wait(process, words, stderr)
    return Memory(anonymous, resident)
