"""Pass an image to another process as a descriptor over a Unix socket, and use its tensors there.

The receiver needs no path and no right to open the file: the descriptor is all it gets (SCM_RIGHTS). That
works between containers too, and for every kind of memory: a file, a memory file, a dma-buf.

Usage: share_fd.py IMAGE          a path
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import daxfs


def send(path: str) -> int:
    """Start a receiver, wait for it to connect, hand it the descriptor; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            listener.settimeout(60)  # a receiver that dies before it connects must not hang us
            command = [sys.executable, __file__, "--receive", address]
            receiver = subprocess.Popen(command)  # noqa: S603 - this very script
            connection, _ = listener.accept()
            with connection, Path(path).open("rb") as file:
                socket.send_fds(connection, [b"image"], [file.fileno()])
            print(f"process {os.getpid()} sent {path}", flush=True)
            return receiver.wait()


def receive(address: str) -> None:
    """Take one descriptor from the socket, open the image in it, print what it holds."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        _message, [descriptor], _flags, _sender = socket.recv_fds(connection, 16, 1)
    with daxfs.open(descriptor) as image:  # duplicates the descriptor, so ours may be closed at once
        os.close(descriptor)
        arrays = {name: np.asarray(tensor) for name, tensor in image.tensors().items()}
    total = sum(array.nbytes for array in arrays.values())
    print(f"process {os.getpid()} got {len(arrays)} tensors, {total} bytes, over the socket")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--receive":
        receive(sys.argv[2])
    elif len(sys.argv) == 2:
        sys.exit(send(sys.argv[1]))
    else:
        sys.exit(__doc__)
