"""Arrays that numpy itself has written: `.npy`, and `.npz` without compression."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import daxfs

TYPES = ["?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8", "<c8"]


def packed(folder: Path) -> daxfs.Image:
    """Pack a folder, compare the image with it, and open the image."""
    image = folder.parent / "image.daxfs"
    daxfs.pack(folder, image)
    subprocess.run([Path(sys.executable).parent / "daxfs", "verify", image, folder], check=True)
    return daxfs.open(image)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "arrays"
    made.mkdir()
    return made


def test_every_dtype(folder: Path) -> None:
    arrays = {str(at): np.arange(6).astype(dtype).reshape(2, 3) for at, dtype in enumerate(TYPES)}
    arrays |= {"scalar": np.float64(2.5), "empty": np.empty((0, 4), "f4"), "row": np.ones((1, 5), order="F")}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    image = packed(folder)
    for name, wanted in arrays.items():
        tensors = image[f"{name}.npy"].tensors()
        assert tensors.indexed
        got = np.asarray(tensors["array"])
        assert (got.dtype, got.shape) == (np.asarray(wanted).dtype, np.shape(wanted))
        assert np.array_equal(got, wanted)


def test_archives(folder: Path) -> None:
    np.savez(folder / "tables.npz", np.arange(4), weight=np.ones((2, 3), "f4"))
    tensors = packed(folder).tensors()
    assert list(tensors) == ["arr_0", "weight"]
    assert np.array_equal(np.asarray(tensors["arr_0"]), np.arange(4))
    assert np.array_equal(np.asarray(tensors["weight"]), np.ones((2, 3), "f4"))


def test_what_cannot_be_used_in_place_is_said(folder: Path) -> None:
    np.savez_compressed(folder / "packed.npz", a=np.ones(3))
    np.save(folder / "objects.npy", np.array([{}, None], dtype=object))
    np.save(folder / "big.npy", np.arange(3, dtype=">i4"))
    np.save(folder / "columns.npy", np.ones((2, 3), order="F"))
    np.save(folder / "fields.npy", np.zeros(2, dtype=[("a", "f4"), ("b", "i2")]))
    # They are sound: the packer says what it could not index, and verify has nothing to say.
    image = packed(folder)
    says = {"packed.npz": "compress", "objects.npy": "objects", "big.npy": "big-endian", "columns.npy": "columns"}
    for name, text in {**says, "fields.npy": "structures"}.items():
        with pytest.raises(daxfs.FormatError, match=text):
            image[name].tensors()
