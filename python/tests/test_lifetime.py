"""Who keeps the memory mapped, and that it goes when the last of them goes."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from conftest import ALL_DTYPES

import daxfs

from support import mappings

NAME = "all.F32"
DATA = ALL_DTYPES[NAME].data

HOLDERS: dict[str, Callable[[daxfs.Image], Any]] = {
    "file": lambda image: image["model.safetensors"],
    "directory": lambda image: image.directory(),
    "tensors": lambda image: image.tensors(),
    "tensor": lambda image: image.tensors()[NAME],
    "walk": lambda image: image.walk(),
    "memoryview of a file": lambda image: memoryview(image["model.safetensors"]),
    "memoryview of a tensor": lambda image: memoryview(image.tensors()[NAME]),
    "raw": lambda image: image.tensors()[NAME].raw,
    "array": lambda image: image.tensors()[NAME].numpy(),
    "asarray": lambda image: np.asarray(image.tensors()[NAME]),
    "bf16 array": lambda image: np.asarray(image.tensors()["all.BF16"]),
    "slice": lambda image: image.tensors()[NAME][1:, ::2],
    "view of a view": lambda image: image.tensors()[NAME].numpy().view(np.uint8).reshape(-1)[3:],
    "frombuffer": lambda image: np.frombuffer(image["sub/large.bin"], np.uint8),
    "from_dlpack": lambda image: np.from_dlpack(image.tensors()[NAME]),
    "capsule": lambda image: image.tensors()[NAME].__dlpack__(),
    "keys": lambda image: image.tensors().keys(),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_holds_the_memory(path: Path, holder: str) -> None:
    with daxfs.open(path) as image:
        held = HOLDERS[holder](image)
    del image
    gc.collect()
    assert len(mappings(path.name)) == 1
    del held
    gc.collect()
    assert not mappings(path.name)


def test_a_closed_image_holds_nothing(path: Path) -> None:
    image = daxfs.open(path)
    assert len(mappings(path.name)) == 1
    image.close()
    assert not mappings(path.name)


def test_an_image_that_is_dropped_holds_nothing(path: Path) -> None:
    image = daxfs.open(path)
    fd = image.fileno()
    del image
    gc.collect()
    assert not mappings(path.name)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_arrays_stay_valid(path: Path) -> None:
    with daxfs.open(path) as image:
        weights = image["model.safetensors"]
        tensor = weights[NAME]
        array = np.asarray(tensor)
        view = memoryview(weights)
    del image, weights, tensor
    gc.collect()
    assert array.tobytes() == DATA
    assert len(bytes(view[:8])) == 8


def test_the_file_may_go(path: Path, tmp_path: Path) -> None:
    short_lived = tmp_path / "short-lived.daxfs"
    short_lived.write_bytes(path.read_bytes())
    with daxfs.open(short_lived) as image:
        array = image.tensors()[NAME].numpy()
    short_lived.unlink()
    assert array.tobytes() == DATA


def test_weak_references(path: Path) -> None:
    image = daxfs.open(path)
    tensors = image.tensors()
    objects = [image, image["config.json"], image.directory(), tensors, tensors[NAME]]
    array = objects[-1].numpy()
    references = [weakref.ref(each) for each in objects]
    assert all(reference() is each for reference, each in zip(references, objects))
    del objects, image, tensors
    gc.collect()
    assert [reference() is None for reference in references] == [True, True, True, True, False]
    del array
    gc.collect()
    assert references[-1]() is None


def test_no_reference_is_leaked(path: Path) -> None:
    with daxfs.open(path) as image:
        file, tensor = image["sub/large.bin"], image.tensors()[NAME]

        def use() -> None:
            memoryview(file).release()
            memoryview(tensor).release()
            np.asarray(tensor)
            tensor.numpy()
            np.from_dlpack(tensor)
            tensor.__dlpack__()
            bytes(tensor)
            with pytest.raises(BufferError):
                tensor.__dlpack__(dl_device=(2, 0))
            for _ in image.items():
                pass

        use()
        counts = [sys.getrefcount(each) for each in (image, file, tensor, daxfs.File, daxfs.Tensor)]
        for _ in range(100):
            use()
        assert counts == [sys.getrefcount(each) for each in (image, file, tensor, daxfs.File, daxfs.Tensor)]


def test_private_memory_does_not_grow(path: Path) -> None:
    def private() -> int:
        # Not the "Private_" fields: they count libraries that another process stops to share in the meantime.
        rollup = Path("/proc/self/smaps_rollup").read_text()
        return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Anonymous:"))

    def use() -> None:
        with daxfs.open(path) as image:
            for tensor in image.tensors().values():
                memoryview(tensor.raw).release()
                tensor.numpy()

    for _ in range(100):
        use()
    before = private()
    for _ in range(300):
        use()
    assert private() - before < 1024, "kB; 300 images with 29 tensors each came and went"
