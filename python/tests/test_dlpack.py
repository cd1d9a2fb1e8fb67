"""DLPack: what the consumers see, and what a capsule promises, read through ctypes."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daxfs

from support import BITS, NUMPY, Spec, mappings, write_safetensors

READ_ONLY, IS_COPIED = 1, 2
# (code, bits, lanes) of dlpack.h 1.1.
CODES = {
    "BOOL": (6, 8, 1),
    "U8": (1, 8, 1),
    "I8": (0, 8, 1),
    "U16": (1, 16, 1),
    "I16": (0, 16, 1),
    "F16": (2, 16, 1),
    "BF16": (4, 16, 1),
    "U32": (1, 32, 1),
    "I32": (0, 32, 1),
    "F32": (2, 32, 1),
    "U64": (1, 64, 1),
    "I64": (0, 64, 1),
    "F64": (2, 64, 1),
    "C64": (5, 64, 1),
    "F8_E4M3": (10, 8, 1),
    "F8_E4M3FNUZ": (11, 8, 1),
    "F8_E5M2": (12, 8, 1),
    "F8_E5M2FNUZ": (13, 8, 1),
    "F8_E8M0": (14, 8, 1),
    "F4": (17, 4, 2),
}


class DLTensor(ctypes.Structure):
    """The array in both forms of a managed tensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Legacy(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


def inside(capsule: Any) -> Any:
    """The struct that a capsule holds."""
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    name = api.PyCapsule_GetName(capsule)
    form = {b"dltensor": Legacy, b"dltensor_versioned": Versioned}[name]
    return form.from_address(api.PyCapsule_GetPointer(capsule, name))


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose tensors lie at multiples of 256 bytes."""
    root = tmp_path_factory.mktemp("aligned")
    specs = {f"t{i:02}.{dtype}": Spec.filled(dtype, (3, 8), i) for i, dtype in enumerate(BITS)}
    write_safetensors(root / "model.safetensors", specs)
    path = tmp_path_factory.mktemp("image") / "aligned.daxfs"
    daxfs.pack(root, path)
    return path


@pytest.fixture
def by_dtype(aligned: Path) -> Iterator[dict[str, daxfs.Tensor]]:
    with daxfs.open(aligned) as image:
        yield {tensor.dtype_name: tensor for tensor in image.tensors().values()}


def test_device(by_dtype: dict[str, daxfs.Tensor]) -> None:
    assert by_dtype["F32"].__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("dtype", CODES)
def test_versioned(by_dtype: dict[str, daxfs.Tensor], dtype: str) -> None:
    tensor = by_dtype[dtype]
    assert tensor.alignment >= 256
    capsule = tensor.__dlpack__(max_version=(1, 0))
    managed = inside(capsule)
    assert isinstance(managed, Versioned)
    assert (managed.major, managed.flags) == (1, READ_ONLY)
    array = managed.tensor
    assert (array.code, array.bits, array.lanes) == CODES[dtype]
    assert (array.device_type, array.device_id, array.byte_offset) == (1, 0, 0)
    last = 4 if dtype == "F4" else 8
    assert (array.shape[: array.ndim], array.strides[: array.ndim]) == ([3, last], [last, 1])
    assert ctypes.string_at(array.data, tensor.nbytes) == tensor.raw.tobytes()
    assert array.data == np.frombuffer(tensor, np.uint8).ctypes.data


def test_versions(by_dtype: dict[str, daxfs.Tensor]) -> None:
    tensor = by_dtype["F32"]
    for version in (None, (0, 8)):
        assert isinstance(inside(tensor.__dlpack__(max_version=version)), Legacy)
    for version in ((1, 0), (1, 3), (2, 0)):
        assert isinstance(inside(tensor.__dlpack__(max_version=version)), Versioned)
    capsule = tensor.__dlpack__()
    assert inside(capsule).tensor.data == tensor.numpy().ctypes.data


def test_requests_that_cannot_be_met(by_dtype: dict[str, daxfs.Tensor]) -> None:
    tensor = by_dtype["F32"]
    for device in ((2, 0), (1, 1)):
        with pytest.raises(BufferError, match="device"):
            tensor.__dlpack__(dl_device=device)
    capsule = tensor.__dlpack__(dl_device=(1, 0), copy=False)
    assert inside(capsule).tensor.ndim == 2
    with pytest.raises(BufferError, match="stream"):
        tensor.__dlpack__(stream=1)  # type: ignore[arg-type]
    for dtype in ("F6_E2M3", "F6_E3M2"):
        for copy in (None, True):
            with pytest.raises(BufferError, match=dtype):
                by_dtype[dtype].__dlpack__(copy=copy)
    with pytest.raises(TypeError):
        tensor.__dlpack__(None)  # type: ignore[misc]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F4"])
def test_copy(by_dtype: dict[str, daxfs.Tensor], dtype: str) -> None:
    tensor = by_dtype[dtype]
    place = np.frombuffer(tensor, np.uint8).ctypes.data
    for version in (None, (1, 0)):
        capsule = tensor.__dlpack__(max_version=version, copy=True)
        managed = inside(capsule)
        if version:
            assert managed.flags == IS_COPIED
        array = managed.tensor
        assert array.data != place
        assert array.data % 64 == 0
        assert array.shape[1] * array.lanes == 8
        assert ctypes.string_at(array.data, tensor.nbytes) == tensor.raw.tobytes()
        ctypes.memset(array.data, 0, tensor.nbytes)
    assert tensor.raw.tobytes() != bytes(tensor.nbytes)


def test_copy_of_nothing(image: daxfs.Image) -> None:
    capsule = image.tensors()["odd.empty"].__dlpack__(copy=True)
    array = inside(capsule).tensor
    assert array.shape[: array.ndim] == [0, 4]


@pytest.mark.parametrize("dtype", NUMPY)
def test_numpy(by_dtype: dict[str, daxfs.Tensor], dtype: str) -> None:
    tensor = by_dtype[dtype]
    array = np.from_dlpack(tensor)
    assert array.dtype == NUMPY[dtype]
    assert array.tobytes() == tensor.raw.tobytes()
    assert array.ctypes.data == tensor.numpy().ctypes.data
    assert not array.flags.writeable


def test_numpy_of_odd_shapes(image: daxfs.Image) -> None:
    tensors = image.tensors()
    assert np.from_dlpack(tensors["odd.scalar"]).shape == ()
    assert np.from_dlpack(tensors["odd.empty"]).shape == (0, 4)
    assert np.from_dlpack(tensors["odd.many_dims"]).shape == (1, 2, 1, 3, 1, 2)


@pytest.mark.parametrize("copy", [None, True])
@pytest.mark.parametrize("version", [None, (1, 0)])
def test_a_capsule_that_nobody_takes(aligned: Path, version: Any, copy: Any) -> None:
    image = daxfs.open(aligned)
    capsules = [
        tensor.__dlpack__(max_version=version, copy=copy)
        for tensor in image.tensors().values()
        if tensor.dtype_name in CODES
    ]
    image.close()
    del image
    gc.collect()
    assert bool(mappings(aligned.name)) is not bool(copy), "a loan keeps the memory, a copy does not"
    del capsules
    gc.collect()
    assert not mappings(aligned.name)


def test_a_consumer_keeps_the_memory(aligned: Path) -> None:
    with daxfs.open(aligned) as image:
        tensor = next(tensor for tensor in image.tensors().values() if tensor.dtype_name == "F32")
        data = tensor.raw.tobytes()
        array = np.from_dlpack(tensor)
        del tensor
    del image
    gc.collect()
    assert array.tobytes() == data
    del array
    gc.collect()
    assert not mappings(aligned.name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jax_takes_it_without_a_copy(by_dtype: dict[str, daxfs.Tensor]) -> None:
    pytest.importorskip("jax")
    import jax.dlpack

    for dtype in ("F32", "BF16", "F8_E4M3", "F8_E5M2", "I32", "U8"):
        tensor = by_dtype[dtype]
        array = jax.dlpack.from_dlpack(tensor, copy=False)
        assert array.unsafe_buffer_pointer() == np.frombuffer(tensor, np.uint8).ctypes.data
        assert array.shape == (3, 8)
        assert np.asarray(array).tobytes() == tensor.raw.tobytes()
        assert np.asarray(array).dtype == tensor.numpy().dtype


def test_torch_takes_it_without_a_copy(by_dtype: dict[str, daxfs.Tensor]) -> None:
    torch = pytest.importorskip("torch")
    for dtype, theirs in (("F32", torch.float32), ("BF16", torch.bfloat16), ("F8_E4M3", torch.float8_e4m3fn)):
        tensor = by_dtype[dtype]
        array = torch.from_dlpack(tensor)
        assert (array.dtype, tuple(array.shape)) == (theirs, (3, 8))
        assert array.data_ptr() == np.frombuffer(tensor, np.uint8).ctypes.data
        assert bytes(array.view(torch.uint8).flatten().tolist()) == tensor.raw.tobytes()
