#!/usr/bin/env python3
"""Runs in each guest of erofs.py: mounts the image by EROFS, compares it with the source, and looks where bytes are.

    erofs_guest.py SOURCE IMAGE

Prints `ready` when the model of the image is mapped, and ends at the next line of its input. What is not as it should
be is an exception.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = "/dev/pmem0"
# Bytes of the page cache that other things may take meanwhile: directories, and programs of this one.
OTHERS = 8 << 20


def check(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def run(*command: str) -> None:
    subprocess.run(command, check=True)


@contextlib.contextmanager
def mounted(kind: str, options: str, what: str, at: str) -> Iterator[Path]:
    Path(at).mkdir(parents=True, exist_ok=True)
    run("mount", "-t", kind, "-o", options, what, at)
    try:
        yield Path(at)
    finally:
        run("umount", at)


def options_of(at: Path) -> list[str]:
    """What the kernel says of a mount."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return next(options.split(",") for _, place, _, options, *_ in lines if place == str(at))


def tree(root: bytes) -> dict[bytes, tuple]:
    """Type, mode, owner, links and contents of all names; links of directories depend on the file system."""
    found = {}
    todo = [root]
    while todo:
        path = todo.pop()
        seen = os.lstat(path)
        what: object = None
        if stat.S_ISDIR(seen.st_mode):
            todo += [os.path.join(path, name) for name in os.listdir(path)]  # noqa: PTH118
        elif stat.S_ISLNK(seen.st_mode):
            what = os.readlink(path)
        else:
            what = (seen.st_size, hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest())
        found[path[len(root) :]] = (seen.st_mode, seen.st_uid, seen.st_gid, what)
    return found


def cached() -> int:
    """Bytes of the page cache."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["Cached"].split()[0]) << 10


def main() -> None:
    source, image = sys.argv[1:]
    expected = tree(os.fsencode(source))
    with mounted("erofs", "ro,loop", image, "/run/looped") as at:
        check(tree(bytes(at)) == expected, "a loop device shows other files")
    with mounted("erofs", "ro,dax=always", DEVICE, "/run/packed") as at:
        check("dax=always" in options_of(at), f"the kernel has turned DAX off: {options_of(at)}")
        check(tree(bytes(at)) == expected, "the device shows other files")
        with mounted("tmpfs", "mode=755", "scratch", "/run/scratch") as scratch:
            upper, work = scratch / "upper", scratch / "work"
            upper.mkdir()
            work.mkdir()
            layers = f"lowerdir={at},upperdir={upper},workdir={work}"
            with mounted("overlay", layers, "overlay", "/run/merged") as merged:
                run(str(merged / "bin/busybox"), "true")
                (merged / "bin/busybox").unlink()
                (merged / "bin/new").write_text("new")
                check(sorted(os.listdir(merged / "bin")) == ["new", "setuid"], "the overlay is another")
        Path("/proc/sys/vm/drop_caches").write_text("3")
        before = cached()
        with (at / "model").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as model:
            found = hashlib.sha256(model).digest()
            grown = cached() - before
            check(found == expected[b"/model"][3][1], "the mapped model has other bytes")
            check(grown < OTHERS < len(model) // 2, f"the page cache grew by {grown} bytes")
            print("ready", flush=True)
            sys.stdin.readline()
    log = subprocess.run(["dmesg"], check=True, capture_output=True, text=True).stdout
    warnings = [line for line in log.splitlines() if "WARNING" in line or "dax.c" in line]
    check(not warnings, "\n".join(warnings))


if __name__ == "__main__":
    main()
