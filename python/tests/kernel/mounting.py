"""Mounting by fsopen(2) and its kin, which Python has no functions for.

As a program it mounts the image that it inherited at the directory that its argument names.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# Numbers of the system calls, the same on all architectures, and of linux/mount.h.
MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT = 429, 430, 431, 432
SET_FLAG, SET_FD, CREATE = 0, 5, 6
CLOEXEC, EMPTY_PATH, AT_FDCWD, DETACH = 1, 4, -100, 2

LIBC = ctypes.CDLL(None, use_errno=True)


def answer(value: int) -> int:
    """Give the answer of a call, or its error."""
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return value


def call(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call."""
    return answer(LIBC.syscall(number, *arguments))


def mount(memory: int, point: Path) -> None:
    """Mount the image in a dma-buf."""
    context = call(FSOPEN, b"daxfs", CLOEXEC)
    call(FSCONFIG, context, SET_FD, b"dmabuf", None, memory)
    call(FSCONFIG, context, SET_FLAG, b"validate", None, 0)
    call(FSCONFIG, context, CREATE, None, None, 0)
    tree = call(FSMOUNT, context, CLOEXEC, 0)
    call(MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(point), EMPTY_PATH)
    os.close(tree)
    os.close(context)


def unmount(point: Path) -> None:
    """Take the mount away, also while its files are open."""
    answer(LIBC.umount2(os.fsencode(point), DETACH))


if __name__ == "__main__":
    mount(int(os.environ["DAXFS_FD"]), Path(sys.argv[1]))
