"""Files: reading, hashing, and the buffer protocol."""

from __future__ import annotations

import array
import ctypes
import hashlib
import io
import socket
from pathlib import Path

import numpy as np
import pytest
from conftest import LARGE

import daxfs

CONTENTS = bytes(range(256)) * (LARGE // 256)


@pytest.fixture
def large(image: daxfs.Image) -> daxfs.File:
    return image["sub/large.bin"]


def test_attributes(image: daxfs.Image, large: daxfs.File, tree: Path) -> None:
    assert (large.name, large.path, large.size) == ("large.bin", "sub/large.bin", LARGE)
    assert large.mode == (tree / "sub" / "large.bin").stat().st_mode
    assert large.extent is not None
    offset, length = large.extent
    assert (offset % (2 << 20), length) == (0, LARGE)
    with open(image.fileno(), "rb", closefd=False) as file:
        file.seek(offset)
        assert file.read(length) == CONTENTS
    assert repr(large) == "<daxfs.File 'sub/large.bin': 3.1 MB>"


def test_read(large: daxfs.File) -> None:
    assert large.read_bytes() == CONTENTS
    assert large.read_at(0) == CONTENTS
    assert large.read_at(5, 10) == CONTENTS[5:15]
    assert large.read_at(offset=LARGE - 3, length=10) == CONTENTS[-3:]
    assert large.read_at(LARGE) == large.read_at(1 << 62, 1) == large.read_at(0, 0) == b""
    for offset, length in ((-1, 1), (0, -1)):
        with pytest.raises(OverflowError):
            large.read_at(offset, length)


def test_slices(large: daxfs.File) -> None:
    assert len(large) == LARGE
    for part in (slice(5, 15), slice(-3, None), slice(LARGE, None), slice(7, 3), slice(None), slice(0, 10 * LARGE)):
        assert large[part] == CONTENTS[part]
    with pytest.raises(ValueError, match=r"memoryview\(file\)"):
        large[::2]


def test_hash(image: daxfs.Image, large: daxfs.File) -> None:
    # BLAKE3 of nothing, from its specification's test vectors.
    assert image["empty"].hash() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert image["config.json"].hash() == image["hard.json"].hash() != large.hash()
    blake3 = pytest.importorskip("blake3")
    assert large.hash() == blake3.blake3(CONTENTS).hexdigest()


def test_memoryview(large: daxfs.File) -> None:
    view = memoryview(large)
    assert (view.readonly, view.format, view.itemsize, view.ndim) == (True, "B", 1, 1)
    assert (view.nbytes, view.shape, view.strides, view.contiguous) == (LARGE, (LARGE,), (1,), True)
    assert view.obj is large
    assert view == CONTENTS
    assert view[5:9].tobytes() == CONTENTS[5:9]
    assert view.cast("I")[1] == 0x07060504
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1


def test_who_takes_a_buffer(large: daxfs.File) -> None:
    assert bytes(large) == CONTENTS
    assert bytearray(large) == CONTENTS
    assert hashlib.sha256(large).digest() == hashlib.sha256(CONTENTS).digest()
    assert io.BytesIO(large).read(3) == CONTENTS[:3]
    assert array.array("B", memoryview(large)[:4]).tolist() == [0, 1, 2, 3]
    assert b"".join([large, large]) == CONTENTS * 2
    sink = io.BytesIO()
    assert sink.write(large) == LARGE
    assert int.from_bytes(memoryview(large)[:2], "little") == 256
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        sent = here.send(large)
        assert 0 < sent <= LARGE
        assert there.recv(100) == CONTENTS[:100]


def test_numpy(large: daxfs.File) -> None:
    for view in (np.frombuffer(large, np.uint8), np.asarray(large), np.array(large, copy=False)):
        assert view.dtype == np.uint8
        assert view.tobytes() == CONTENTS
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
        with pytest.raises(ValueError, match=r"WRITEABLE|writeable"):
            view.flags.writeable = True
    words = np.frombuffer(large, "<u4", count=4, offset=4)
    assert words[0] == 0x07060504


def test_empty(image: daxfs.Image) -> None:
    empty = image["empty"]
    view = memoryview(empty)
    assert (view.nbytes, view.shape, view.tobytes()) == (0, (0,), b"")
    assert bytes(empty) == empty.read_bytes() == empty.read_at(5, 5) == empty[:] == b""
    assert hashlib.sha256(empty).digest() == hashlib.sha256().digest()
    assert np.asarray(empty).shape == (0,)
    assert empty.size == len(empty) == 0
    assert empty, "a file without bytes is one all the same"


def test_a_buffer_that_must_be_writable(large: daxfs.File) -> None:
    with pytest.raises((TypeError, BufferError), match=r"read-write|writable|read-only"):
        io.BytesIO(b"abc").readinto(large)  # type: ignore[arg-type]
    with pytest.raises((TypeError, BufferError), match=r"writable|read-only"):
        (ctypes.c_char * 4).from_buffer(large)  # type: ignore[arg-type]
    assert large.read_at(0, 3) == CONTENTS[:3]


def test_many_views_at_once(large: daxfs.File) -> None:
    views = [memoryview(large) for _ in range(1000)]
    assert all(view[i] == i % 256 for i, view in enumerate(views))
    for view in views[::2]:
        view.release()
    assert views[1][1] == 1


def test_no_tensors(image: daxfs.Image) -> None:
    config = image["config.json"]
    for use in (
        config.tensors,
        config.keys,
        lambda: config["x"],
        lambda: "x" in config,
    ):
        with pytest.raises(daxfs.FormatError, match=r"config\.json"):
            use()


def test_tensors_of_a_file(image: daxfs.Image) -> None:
    weights = image["model.safetensors"]
    assert weights["all.F32"].shape == (3, 8)
    assert "all.F32" in weights
    assert "nothing" not in weights
    assert weights.get("nothing") is None
    assert weights.get("nothing", 1) == 1
    tensor = weights.get("all.F32")
    assert tensor is not None
    assert tensor.name == "all.F32"
    names = list(weights.tensors())
    assert list(weights.keys()) == names == sorted(names)
    assert [tensor.name for tensor in weights.values()] == names
    assert [(name, tensor.name) for name, tensor in weights.items()] == [(n, n) for n in names]
    assert [tensor.name for tensor in dict(weights).values()] == names  # type: ignore[call-overload]
    assert weights.metadata == {"format": "pt", "note": "grüße"}
    with pytest.raises(daxfs.NotFoundError, match="nothing"):
        weights["nothing"]
    for key in (0, None, b"all.F32", ("all.F32",)):
        assert key not in weights
        with pytest.raises(TypeError, match="slice"):
            weights[key]  # type: ignore[call-overload]


def test_iterating(image: daxfs.Image, large: daxfs.File) -> None:
    # A list would be made as long as the file, and then filled with names.
    for file in (large, image["model.safetensors"]):
        for use in (iter, list, sorted, tuple):
            with pytest.raises(TypeError, match=r"file\.keys\(\).*file\.open\(\)"):
                use(file)  # type: ignore[operator]


def test_cannot_be_made(large: daxfs.File) -> None:
    for arguments in ((), (None,), (b"x",), (large,)):
        with pytest.raises(TypeError, match=r"daxfs\.open"):
            daxfs.File(*arguments)
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Sub", (daxfs.File,), {})
    with pytest.raises(AttributeError):
        large.name = "x"  # type: ignore[misc]
