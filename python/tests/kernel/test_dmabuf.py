"""Images in real dma-bufs, read from Python: `make test-kernel` runs these where udmabuf and dma-heap are.

With ``DAXFS_REQUIRE_DEVICES=1`` a missing device is a failure, elsewhere the tests are skipped and say why.
"""

from __future__ import annotations

import array
import errno
import fcntl
import gc
import mmap
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from model import check, weights

import daxfs

if TYPE_CHECKING:
    from collections.abc import Iterator

UDMABUF, HEAP = Path("/dev/udmabuf"), Path("/dev/dma_heap/system")
PACK = Path(sys.executable).with_name("daxfs-pack")
READER = Path(__file__).with_name("model.py")
TARGETS = {"udmabuf": "udmabuf", "heap:system": "system"}

# struct dma_heap_allocation_data of linux/dma-heap.h: length, descriptor, its flags, flags of the heap.
ALLOCATION = struct.Struct("QIIQ")
DMA_HEAP_IOCTL_ALLOC = 0xC0184800


@pytest.fixture(scope="session", autouse=True)
def devices() -> None:
    """Skip without the devices, or fail where they have to be."""
    missing = [str(device) for device in (UDMABUF, HEAP) if not device.exists()]
    if missing and os.environ.get("DAXFS_REQUIRE_DEVICES"):
        pytest.fail(f"no {missing[0]}")
    if missing:
        pytest.skip(f"no {missing[0]}")


def receive(target: str, folder: Path, socket_path: Path) -> int:
    """Have another process pack the model and send the descriptor, the only one that is left then."""
    sender = "import os, socket; s = socket.socket(socket.AF_UNIX); s.connect(os.environ['TEST_SOCKET'])\n"
    sender += "socket.send_fds(s, [b'.'], [int(os.environ['DAXFS_FD'])])"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        listener.settimeout(60)
        command: list[str | Path] = [
            PACK,
            "--quiet",
            "--into",
            target,
            folder,
            "--",
            sys.executable,
            "-S",
            "-c",
            sender,
        ]
        with subprocess.Popen(command, env={**os.environ, "TEST_SOCKET": str(socket_path)}) as process:
            connection, _ = listener.accept()
            with connection:
                _, (fd,), _, _ = socket.recv_fds(connection, 1, 1)
    assert process.returncode == 0
    return fd


@pytest.fixture(scope="module", params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> str:
    """Name a kind of dma-buf as daxfs-pack takes it."""
    return str(request.param)


@pytest.fixture(scope="module")
def packed(target: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Give a descriptor of the packed model."""
    fd = receive(target, folder, tmp_path_factory.mktemp("packed") / "socket")
    yield fd
    os.close(fd)


def test_image_is_the_tree_and_says_where_it_is(packed: int, target: str, folder: Path) -> None:
    length = os.lseek(packed, 0, os.SEEK_END)
    with daxfs.open(packed, strict=True) as image:
        assert (image.kind, image.exporter) == ("dma-buf", TARGETS[target])
        assert image.provenance == "shared"
        assert image.size <= length
        check(image, folder)
        assert os.fstat(image.fileno()).st_ino == os.fstat(packed).st_ino


def test_program_inherits_the_image(target: str, folder: Path) -> None:
    command: list[str | Path] = [
        PACK,
        "--quiet",
        "--into",
        target,
        folder,
        "--",
        sys.executable,
        READER,
        folder,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{TARGETS[target]}\n", "")


def test_arrays_cannot_be_written(packed: int) -> None:
    with daxfs.open(packed) as image:
        values = np.asarray(image.tensors()["f32"])
        with pytest.raises(ValueError, match="read-only"):
            values[0, 0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            values.flags.writeable = True
        assert memoryview(image["config.json"]).readonly


@pytest.mark.parametrize("target", ["udmabuf"], indirect=True)  # heaps of newer kernels have private copies
def test_udmabuf_has_no_private_copy(packed: int) -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        daxfs.open(packed, private=True)
    assert caught.value.errno == errno.EINVAL


def listed(ino: int) -> bool:
    """Whether the kernel has a dma-buf with this inode number; its list needs root."""
    lines = Path("/sys/kernel/debug/dma_buf/bufinfo").read_text().splitlines()
    # size, flags, mode, count, exporter, inode number, name
    columns = [line.split() for line in lines]
    return any(len(words) > 5 and words[5].isdigit() and int(words[5]) == ino for words in columns)


def test_last_array_frees_the_memory(target: str, folder: Path, tmp_path: Path) -> None:
    fd = receive(target, folder, tmp_path / "socket")
    ino = os.fstat(fd).st_ino
    image = daxfs.open(fd)
    os.close(fd)
    try:
        assert listed(ino)
    except PermissionError:
        if os.environ.get("DAXFS_REQUIRE_DEVICES"):
            raise
        pytest.skip("only root can read the kernel's list of dma-bufs")
    values = np.asarray(image.tensors()["f32"])
    image.close()
    del image
    gc.collect()
    assert listed(ino)
    assert values.tobytes() == weights()["f32"].tobytes()
    del values
    gc.collect()
    for _ in range(100):
        if not listed(ino):
            return
        time.sleep(0.05)
    pytest.fail("the memory is still there")


def test_read_only_descriptor_stays_read_only() -> None:
    """A heap gives out buffers that nobody can map for writing, also after a detour through a socket."""
    with HEAP.open("rb") as heap:
        request = array.array("B", ALLOCATION.pack(8192, 0, os.O_RDONLY | os.O_CLOEXEC, 0))
        fcntl.ioctl(heap, DMA_HEAP_IOCTL_ALLOC, request)
    _, allocated, _, _ = ALLOCATION.unpack(request.tobytes())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(ours, [b"."], [allocated])
        _, (received,), _, _ = socket.recv_fds(theirs, 1, 1)
    for fd in (allocated, received):
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 8192, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with mmap.mmap(fd, 8192, mmap.MAP_SHARED, mmap.PROT_READ) as view:
            assert view[:] == bytes(8192)
        # It is mapped and read like any other source: what is missing is an image in it.
        with pytest.raises(daxfs.FormatError, match="magic"):
            daxfs.open(fd)
        os.close(fd)
