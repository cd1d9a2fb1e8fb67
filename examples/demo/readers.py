"""Start several readers at once on one descriptor, keep them in step, and collect what they report.

As a command, `daxfs-pack ... --into memfd -- python readers.py COUNT SENTENCES.json`, it hands the descriptor
that daxfs-pack left it (number in $DAXFS_FD) on to the readers, and prints their reports as JSON. It never
opens the image itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

READER = Path(__file__).with_name("reader.py")


def answer(reader: subprocess.Popen[str]) -> str:
    """The next line of a reader; its death is an error."""
    line = reader.stdout.readline()
    if not line:
        raise RuntimeError(f"reader {reader.pid} ended with status {reader.wait()}")
    return line


def tell(reader: subprocess.Popen[str], message: str) -> None:
    """One line to a reader."""
    reader.stdin.write(message + "\n")
    reader.stdin.flush()


def run(fd: int, count: int, sentences: list[str]) -> list[dict[str, Any]]:
    """Reports of `count` readers that ran side by side; each one got the descriptor and nothing else."""
    # One thread for each reader's matrix products: threads that wait for each other crawl on busy processors.
    readers = [
        subprocess.Popen(
            [sys.executable, str(READER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(fd,),
            env={**os.environ, "DAXFS_IMAGE": f"fd:{fd}", "OPENBLAS_NUM_THREADS": "1"},
        )
        for _ in range(count)
    ]
    try:
        for reader in readers:
            tell(reader, json.dumps(sentences))
        for expected in ("ready", "holding", "computed"):
            for reader in readers:
                if answer(reader).strip() != expected:
                    raise RuntimeError(f"reader {reader.pid} did not say {expected!r}")
            for reader in readers:
                tell(reader, "go on")
        reports = [json.loads(answer(reader)) for reader in readers]  # all are alive and hold every tensor
        for reader in readers:
            tell(reader, "finish")
            reader.wait()
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    return reports


if __name__ == "__main__":
    texts = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    print(json.dumps(run(int(os.environ["DAXFS_FD"]), int(sys.argv[1]), texts)))
