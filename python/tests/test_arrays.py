"""What array libraries make of tensors: the table of docs/arrays.md, type by type, and `dtype` as they take it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import ml_dtypes
import numpy as np
import pytest

import daxfs

from support import BITS, ML_DTYPES, NUMPY, Spec, write_safetensors

TABLE = Path(__file__).parents[2] / "docs" / "arrays.md"
PACKED = ("F4", "F6_E2M3", "F6_E3M2")
SHAPE = (4, 8)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, daxfs.Tensor]]:
    """A tensor of each type, on 256 bytes."""
    root = tmp_path_factory.mktemp("arrays")
    specs = {dtype: Spec.filled(dtype, SHAPE, seed) for seed, dtype in enumerate(BITS)}
    write_safetensors(root / "model.safetensors", specs)
    with daxfs.pack(root) as image:
        yield dict(image.tensors())


def table() -> tuple[list[str], dict[str, list[str]]]:
    """The functions and the rows of the table."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head, _, *rest = rows
    return [re.sub("`", "", cell) for cell in head[1:]], {row[0]: row[1:] for row in rest}


FUNCTIONS, ROWS = table()


def function(name: str) -> tuple[Callable[[Any], Any], Callable[[Any], int]]:
    """A function of the table, and how the address of its result is found."""
    if name.startswith("numpy"):
        return np.asarray, lambda array: int(array.ctypes.data)
    if name.startswith("jax"):
        pytest.importorskip("jax")
        import jax.dlpack
        import jax.numpy

        used = {"jax.numpy.asarray": jax.numpy.asarray, "jax.dlpack.from_dlpack": jax.dlpack.from_dlpack}[name]
        return used, lambda array: int(array.unsafe_buffer_pointer())
    assert name == "torch.from_dlpack"
    torch = pytest.importorskip("torch")
    return torch.from_dlpack, lambda array: int(array.data_ptr())


def outcome(name: str, tensor: daxfs.Tensor) -> str:
    """What the cell of the table must say."""
    use, address = function(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX says that 64-bit types become 32-bit ones
        try:
            array = use(tensor)
        except (BufferError, RuntimeError, TypeError):
            return "refused"
    is_view = address(array) == np.frombuffer(tensor, np.uint8).ctypes.data
    kind = f"{'view' if is_view else 'copy'} {str(array.dtype).removeprefix('torch.')}"
    return kind if tuple(array.shape) == tensor.shape else f"{kind} {list(array.shape)}"


def test_the_table_has_every_type() -> None:
    assert list(ROWS) == list(BITS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", BITS)
def test_the_table_is_true(tensors: dict[str, daxfs.Tensor], name: str, dtype: str) -> None:
    # In the table a tensor has the shape [4, 8].
    assert outcome(name, tensors[dtype]) == ROWS[dtype][FUNCTIONS.index(name)]


@pytest.mark.parametrize("dtype", BITS)
def test_dtype_is_numpy_s(tensors: dict[str, daxfs.Tensor], dtype: str) -> None:
    tensor = tensors[dtype]
    wanted = NUMPY.get(dtype) or (getattr(ml_dtypes, ML_DTYPES[dtype]) if dtype in ML_DTYPES else np.uint8)
    assert isinstance(tensor.dtype, np.dtype)
    assert (tensor.dtype, tensor.dtype_name) == (np.dtype(wanted), dtype)
    assert np.asarray(tensor).dtype == tensor.numpy().dtype == tensor.dtype
    zeros = np.zeros(tensor.shape, tensor.dtype)
    assert (zeros.dtype, zeros.shape) == (tensor.dtype, SHAPE)
    assert np.empty_like(tensor.numpy()).dtype == np.result_type(tensor.dtype) == tensor.dtype


@pytest.mark.parametrize("dtype", BITS)
def test_dtype_in_jax(tensors: dict[str, daxfs.Tensor], dtype: str) -> None:
    jax = pytest.importorskip("jax")
    tensor = tensors[dtype]
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        array = jax.numpy.asarray(tensor)
        zeros = jax.numpy.zeros(tensor.shape, tensor.dtype)
    assert array.dtype == zeros.dtype == tensor.dtype
    assert np.asarray(array).tobytes() == tensor.raw.tobytes()


@pytest.mark.parametrize("dtype", [dtype for dtype in BITS if dtype not in PACKED])
def test_dtype_in_torch(tensors: dict[str, daxfs.Tensor], dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = tensors[dtype]
    array = tensor.torch()  # type: ignore[attr-defined, unused-ignore]
    assert array.dtype == getattr(torch, tensor.dtype.name)
    assert tuple(array.shape) == tensor.shape
    assert array.data_ptr() == tensor.numpy().ctypes.data


def test_torch_of_packed_types(tensors: dict[str, daxfs.Tensor]) -> None:
    torch = pytest.importorskip("torch")
    assert torch.as_tensor(tensors["F6_E2M3"].numpy().copy()).shape == (24,)
    if hasattr(torch, "float4_e2m1fn_x2"):
        assert (tensors["F4"].torch().dtype, tensors["F4"].torch().shape) == (torch.float4_e2m1fn_x2, (4, 4))


@pytest.mark.parametrize("dtype", [dtype for dtype in BITS if dtype not in PACKED])
def test_dask(tensors: dict[str, daxfs.Tensor], dtype: str) -> None:
    dask = pytest.importorskip("dask.array")
    tensor = tensors[dtype]
    for chunks in ("auto", (2, 3)):
        array = dask.from_array(tensor, chunks=chunks)
        assert (array.dtype, array.shape) == (tensor.dtype, tensor.shape)
        computed = array.compute()
        assert (computed.dtype, computed.tobytes()) == (tensor.dtype, tensor.raw.tobytes())


def test_without_torch(tensors: dict[str, daxfs.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        tensors["F32"].torch()


def test_values_are_those_of_the_type(tensors: dict[str, daxfs.Tensor]) -> None:
    jax = pytest.importorskip("jax")
    for dtype in ("BF16", "F8_E4M3", "F16", "F32"):
        tensor = tensors[dtype]
        with np.errstate(all="ignore"):
            ours = np.asarray(jax.numpy.asarray(tensor).astype(jax.numpy.float32))
            theirs = np.asarray(tensor).astype(np.float32)
        assert np.array_equal(ours, theirs, equal_nan=True)
