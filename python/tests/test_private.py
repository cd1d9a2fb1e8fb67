"""Images that are opened private: writable here, unchanged everywhere else."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from conftest import ALL_DTYPES

import daxfs

NAME = "all.F32"


def test_writing_stays_private(path: Path) -> None:
    before = path.read_bytes()
    with daxfs.open(path, private=True) as image, daxfs.open(path) as other:
        array = image.tensors()[NAME].numpy()
        assert array.flags.writeable
        array[:] = 42
        assert (np.asarray(image.tensors()[NAME]) == 42).all()
        assert other.tensors()[NAME].raw == ALL_DTYPES[NAME].data
        assert path.read_bytes() == before


def test_all_ways_to_write(path: Path) -> None:
    with daxfs.open(path, private=True) as image:
        tensor = image.tensors()[NAME]
        for write in (
            memoryview(tensor).cast("B").cast("f"),
            tensor.raw.cast("f"),
            np.asarray(tensor).reshape(-1),
            np.frombuffer(tensor, np.float32),
            tensor[:].reshape(-1),
        ):
            write[5] += 1.0
        (ctypes.c_float * tensor.size).from_buffer(tensor)[5] += 1.0
        expected = np.frombuffer(ALL_DTYPES[NAME].data, np.float32)[5]
        for _ in range(6):
            expected += np.float32(1.0)
        assert tensor.numpy().reshape(-1)[5] == expected
        file = memoryview(image["config.json"])
        assert not file.readonly
        file[:1] = b"["
        assert image["config.json"].read_bytes() == b'["hidden_size": 8}'


def test_dlpack_says_writable(path: Path) -> None:
    with daxfs.open(path, private=True) as image:
        tensor = image.tensors()[NAME]
        array = np.from_dlpack(tensor)
        if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
            # Earlier ones know no flags and take every array for read-only.
            array[0, 0] = 7
            assert tensor[0, 0] == 7


def test_sealed_memory_can_be_private(tree: Path) -> None:
    with daxfs.pack(tree) as sealed, daxfs.open(sealed.fileno(), private=True) as image:
        assert sealed.provenance == "sealed"
        assert image.provenance == "shared"
        image.tensors()[NAME].numpy()[:] = 0
        assert not np.asarray(image.tensors()[NAME]).any()
        assert sealed.tensors()[NAME].raw == ALL_DTYPES[NAME].data


def test_the_default_is_read_only(path: Path) -> None:
    with daxfs.open(path) as image:
        tensor = image.tensors()[NAME]
        assert memoryview(tensor).readonly
        assert not tensor.numpy().flags.writeable
        assert not np.from_dlpack(tensor).flags.writeable
        with pytest.raises(TypeError, match=r"writable|read-only"):
            (ctypes.c_float * tensor.size).from_buffer(tensor)
