"""Parts of descriptors, replacing an image, and sending files by the best way."""

from __future__ import annotations

import array
import os
import socket
import threading
from pathlib import Path

import pytest

import daxfs

SLOT = 4 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(bytes(range(256)) * 1000)
    (tree / "empty").write_bytes(b"")
    return tree


@pytest.fixture
def pool() -> int:
    fd = os.memfd_create("pool")
    os.truncate(fd, 4 * SLOT)
    yield fd
    os.close(fd)


def test_images_at_offsets_of_one_descriptor(tree: Path, pool: int) -> None:
    for slot in (1, 3):
        image = daxfs.pack(tree, into=f"fd:{pool}@{slot * SLOT}+4M", verify=True)
        assert image["a"].read_bytes() == (tree / "a").read_bytes()
        again = daxfs.open(f"fd:{pool}@{slot * SLOT:#x}")
        assert again["a"].size == 256_000
    with pytest.raises(daxfs.FormatError, match="not an image"):
        daxfs.open(f"fd:{pool}")
    with pytest.raises(daxfs.SourceError, match="outside of the"):
        daxfs.open(f"fd:{pool}@{4 * SLOT + 4096}")
    for text in (f"fd:{pool}@1", "phys:0x1000", "/dev/dax0.0@x"):
        with pytest.raises(ValueError, match="."):
            daxfs.open(text)


def test_paths_that_are_meant_as_paths(tree: Path, tmp_path: Path) -> None:
    for text in ("/dev/dax0.0@2M", "phys:0x1000+4K", "fd:0"):
        with pytest.raises(FileNotFoundError):
            daxfs.open(Path(text))


def test_a_physical_range_says_what_it_needs(tree: Path) -> None:
    if Path("/dev/mem").exists():
        pytest.skip("this machine has /dev/mem")
    with pytest.raises(daxfs.SourceError, match="CONFIG_DEVMEM"):
        daxfs.open("phys:0x8000000+64M")


def test_replacing_is_noticed(tree: Path, pool: int) -> None:
    place = f"fd:{pool}"
    old = daxfs.pack(tree, into=place)
    assert old.generation == 0
    assert old.refresh() is None
    contents = old["a"].read_bytes()
    with pytest.raises(daxfs.DaxfsError, match="replace"):
        daxfs.pack(tree, into=place)
    (tree / "a").write_bytes(b"new")
    daxfs.pack(tree, into=place, replace=True)
    new = old.refresh()
    assert new is not None
    assert new.generation == 1
    assert new["a"].read_bytes() == b"new"
    assert old["a"].read_bytes() == contents, "both fit into the region"


def test_nodes_of_new_memory(tree: Path) -> None:
    if not Path("/sys/devices/system/node/node0").exists():
        pytest.skip("a kernel without NUMA")
    image = daxfs.pack(tree, into="memfd", numa=0)
    assert image["a"].size == 256_000
    with pytest.raises(daxfs.SourceError, match="NUMA node 999"):
        daxfs.pack(tree, into="memfd", numa=999)


def test_readinto(tree: Path) -> None:
    file = daxfs.pack(tree)["a"]
    contents = (tree / "a").read_bytes()
    buffer = bytearray(300_000)
    assert file.readinto_at(0, buffer) == 256_000
    assert buffer[:256_000] == contents
    assert not any(buffer[256_000:])
    words = array.array("I", [0] * 10)
    assert file.readinto_at(255_980, memoryview(words)) == 20
    assert words.tobytes()[:20] == contents[-20:]
    assert file.readinto_at(256_000, bytearray(5)) == 0
    assert file.readinto_at(0, bytearray()) == 0
    for wrong in (b"bytes", 3, "text"):
        with pytest.raises((TypeError, BufferError)):
            file.readinto_at(0, wrong)  # type: ignore[arg-type]


def test_write_to_files_and_descriptors(tree: Path, tmp_path: Path) -> None:
    image = daxfs.pack(tree)
    contents = (tree / "a").read_bytes()
    with (tmp_path / "out").open("wb", buffering=0) as out:
        out.write(b"head")
        assert image["a"].write_to(out) == 256_000
        assert image["empty"].write_to(out.fileno()) == 0
        assert image["a"].write_to(out.fileno()) == 256_000
    assert (tmp_path / "out").read_bytes() == b"head" + contents + contents
    with pytest.raises(TypeError, match="fileno"):
        image["a"].write_to("out")  # type: ignore[arg-type]
    with (tmp_path / "out").open("rb") as closed_for_writing, pytest.raises(OSError, match="Bad file"):
        image["a"].write_to(closed_for_writing)


def test_send_through_a_socket(tree: Path) -> None:
    (tree / "a").write_bytes(os.urandom(3 << 20))
    file = daxfs.pack(tree)["a"]
    ours, theirs = socket.socketpair()
    received = bytearray()

    def receive() -> None:
        while part := theirs.recv(1 << 16):
            received.extend(part)

    with ours, theirs:
        ours.settimeout(0.05)
        with pytest.raises(TimeoutError):
            file.send(ours)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=receive)
        thread.start()
        ours.settimeout(60)
        assert file.send(ours) == 3 << 20
        ours.close()
        thread.join()
    assert bytes(received) == (tree / "a").read_bytes()
