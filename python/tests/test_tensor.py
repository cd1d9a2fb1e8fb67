"""Tensors: every type and shape against the safetensors package, numpy arrays, buffers, slices."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from conftest import ALL_DTYPES, METADATA, ODD_SHAPES, SHARDS

import daxfs

from support import BITS, ML_DTYPES, NUMPY, Spec, write_safetensors

SPECS = {**ALL_DTYPES, **ODD_SHAPES}

needs_all_types = pytest.mark.skipif(
    tuple(map(int, safetensors.__version__.split(".")[:2])) < (0, 8), reason="safetensors before 0.8 lacks types"
)


@pytest.fixture
def tensors(image: daxfs.Image) -> daxfs.Tensors:
    return image.tensors()


def expected(spec: Spec) -> np.ndarray[Any, Any]:
    """What numpy must show: computed here from the bytes that were written."""
    if spec.dtype in NUMPY:
        return np.frombuffer(spec.data, NUMPY[spec.dtype]).reshape(spec.shape)
    if spec.dtype in ML_DTYPES:
        return np.frombuffer(spec.data, getattr(ml_dtypes, ML_DTYPES[spec.dtype])).reshape(spec.shape)
    flat = np.frombuffer(spec.data, np.uint8)
    if spec.dtype == "F4" and spec.shape[-1] % 2 == 0:
        return flat.reshape(*spec.shape[:-1], spec.shape[-1] // 2)
    return flat


def same(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.tobytes() == theirs.tobytes()


def test_mapping(tensors: daxfs.Tensors) -> None:
    assert isinstance(tensors, Mapping)
    assert list(tensors) == sorted(SPECS)
    assert len(tensors) == len(SPECS)
    assert [name for name, tensor in tensors.items() if tensor.name != name] == []
    assert [tensor.name for tensor in tensors.values()] == list(tensors.keys())
    assert "all.U8" in tensors
    assert "all.U" not in tensors
    assert tensors.get("all.U") is None
    assert tensors.get("all.U", 3) == 3
    with pytest.raises(daxfs.NotFoundError, match=r"all\.U"):
        tensors["all.U"]
    assert tensors.metadata == METADATA
    assert [shard.path for shard in tensors.shards] == ["model.safetensors"]
    assert repr(tensors).startswith(f"<daxfs.Tensors: {len(SPECS)} tensors in 'model.safetensors', ")


@needs_all_types
def test_the_oracle_agrees_on_bytes_and_shapes(tensors: daxfs.Tensors, tree: Path) -> None:
    theirs = dict(safetensors.deserialize((tree / "model.safetensors").read_bytes()))
    assert theirs.keys() == tensors.keys()
    for name, info in theirs.items():
        ours = tensors[name]
        assert (ours.dtype_name, list(ours.shape), ours.raw.tobytes()) == (
            info["dtype"],
            info["shape"],
            bytes(info["data"]),
        )


@needs_all_types
def test_the_oracle_agrees_on_arrays(tensors: daxfs.Tensors, tree: Path) -> None:
    seen = set()
    with safetensors.safe_open(tree / "model.safetensors", "numpy") as oracle:
        for name, ours in tensors.items():
            if ours.dtype_name in NUMPY or ours.dtype_name == "BF16":
                same(ours.numpy(), oracle.get_tensor(name))
                seen.add(ours.dtype_name)
    assert seen == {*NUMPY, "BF16"}


@pytest.mark.parametrize("name", SPECS)
def test_numpy(tensors: daxfs.Tensors, name: str) -> None:
    spec, tensor = SPECS[name], tensors[name]
    assert (tensor.name, tensor.dtype_name, tensor.shape) == (name, spec.dtype, spec.shape)
    assert (tensor.ndim, tensor.nbytes) == (len(spec.shape), len(spec.data))
    assert tensor.size == int(np.prod(spec.shape, dtype=np.int64))
    for view in (tensor.numpy(), np.asarray(tensor), tensor.__array__()):
        same(view, expected(spec))
        assert isinstance(tensor.dtype, np.dtype)
        assert view.dtype == tensor.dtype
        assert not view.flags.writeable
        assert not view.flags.owndata
        assert view.flags.c_contiguous
    assert tensor.numpy().base is tensor
    assert tensor.numpy().ctypes.data == np.asarray(tensor).ctypes.data


@pytest.mark.parametrize("name", SPECS)
def test_place(tensors: daxfs.Tensors, name: str) -> None:
    tensor = tensors[name]
    assert tensor.file.read_at(tensor.offset, tensor.nbytes) == SPECS[name].data
    assert tensor.file.extent is not None
    place = tensor.file.extent[0] + tensor.offset
    address = tensor.numpy().ctypes.data if tensor.nbytes else place
    start = address - place if tensor.nbytes else 0
    assert start % 4096 == place % tensor.alignment == address % tensor.alignment == 0
    twice = 2 * tensor.alignment
    assert not tensor.nbytes or tensor.alignment == 2 << 20 or place % twice != 0 or start % twice != 0


@pytest.mark.parametrize("name", SPECS)
def test_raw(tensors: daxfs.Tensors, name: str) -> None:
    view = tensors[name].raw
    assert (view.format, view.ndim, view.readonly) == ("B", 1, True)
    assert view == SPECS[name].data


def test_writing_is_refused(tensors: daxfs.Tensors) -> None:
    view = tensors["all.F32"].numpy()
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
    with pytest.raises(ValueError, match=r"WRITEABLE|writeable"):
        view.flags.writeable = True


@pytest.mark.parametrize("dtype", NUMPY)
def test_memoryview(tensors: daxfs.Tensors, dtype: str) -> None:
    spec, tensor = ALL_DTYPES[f"all.{dtype}"], tensors[f"all.{dtype}"]
    view = memoryview(tensor)
    assert (view.shape, view.readonly, view.c_contiguous) == (spec.shape, True, True)
    assert view.itemsize == BITS[dtype] // 8
    assert view.strides == (8 * view.itemsize, view.itemsize)
    assert view.tobytes() == spec.data
    same(np.asarray(view), expected(spec))
    if dtype not in ("C64", "F16"):  # memoryview itself cannot read these
        assert view.tolist() == expected(spec).tolist()


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_memoryview_of_packed_types(tensors: daxfs.Tensors, dtype: str) -> None:
    view = memoryview(tensors[f"all.{dtype}"])
    assert (view.format, view.shape) == ("B", expected(ALL_DTYPES[f"all.{dtype}"]).shape)


@pytest.mark.parametrize("dtype", ML_DTYPES)
def test_types_without_a_format(tensors: daxfs.Tensors, dtype: str) -> None:
    spec, tensor = ALL_DTYPES[f"all.{dtype}"], tensors[f"all.{dtype}"]
    with pytest.raises(BufferError, match=rf"{dtype}.*tensor\.raw"):
        memoryview(tensor)
    # Whoever asks for bytes, and not for a type, gets them.
    assert np.frombuffer(tensor, np.uint8).tobytes() == spec.data
    assert hashlib.sha256(tensor).digest() == hashlib.sha256(spec.data).digest()
    assert io.BytesIO().write(tensor) == len(spec.data)


def test_memoryview_of_odd_shapes(tensors: daxfs.Tensors) -> None:
    scalar = memoryview(tensors["odd.scalar"])
    assert (scalar.ndim, scalar.shape, scalar.tobytes()) == (0, (), ODD_SHAPES["odd.scalar"].data)
    empty = memoryview(tensors["odd.empty"])
    assert (empty.shape, empty.nbytes, empty.tobytes()) == ((0, 4), 0, b"")
    many = memoryview(tensors["odd.many_dims"])
    assert many.shape == (1, 2, 1, 3, 1, 2)
    assert many.strides == (24, 12, 12, 4, 4, 2)


def test_more_dimensions_than_a_buffer_has(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "deep.safetensors", {"deep": Spec("U8", (1,) * 65, b"x")})
    with daxfs.pack(tmp_path, plain=True) as image:
        deep = image.tensors()["deep"]
        assert deep.ndim == 65
        with pytest.raises(BufferError, match="65 dimensions"):
            memoryview(deep)
        assert deep.raw == b"x"


def test_array_protocol(tensors: daxfs.Tensors) -> None:
    tensor = tensors["all.F32"]
    values = expected(ALL_DTYPES["all.F32"])
    place = tensor.numpy().ctypes.data
    assert tensor.__array__(None).ctypes.data == place
    assert tensor.__array__("<f4").ctypes.data == place
    assert tensor.__array__(np.float32, copy=False).ctypes.data == place
    assert tensor.__array__(copy=None).ctypes.data == place
    copied = tensor.__array__(copy=True)
    assert copied.ctypes.data != place
    assert copied.flags.writeable
    assert copied.flags.owndata
    same(copied, values)
    for copy_ in (None, True):
        same(tensor.__array__("<f8", copy=copy_), values.astype("<f8"))
    with pytest.raises(ValueError, match="float64"):
        tensor.__array__(np.float64, copy=False)
    with pytest.raises(TypeError):
        tensor.__array__("nonsense")


def test_numpy_functions(tensors: daxfs.Tensors) -> None:
    for name in ("all.F32", "all.BF16"):
        values = expected(ALL_DTYPES[name])
        with np.errstate(all="ignore"):
            same(np.asarray(tensors[name], np.float64), values.astype(np.float64))
        copied = np.array(tensors[name])
        assert copied.flags.writeable
        same(copied, values)
        same(np.stack([tensors[name], tensors[name]]), np.stack([values, values]))
        if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
            assert np.asarray(tensors[name], copy=False).base is not None
            with pytest.raises(ValueError, match="copy"):
                np.asarray(tensors[name], np.int8, copy=False)


def test_slices(tensors: daxfs.Tensors) -> None:
    for name in ("all.I32", "all.BF16"):
        tensor, values = tensors[name], expected(ALL_DTYPES[name])
        same(tensor[1:], values[1:])
        same(tensor[::2, 3], values[::2, 3])
        same(tensor[..., None], values[..., None])
        same(tensor[[2, 0]], values[[2, 0]])
        assert tensor[1, 2] == values[1, 2]
        assert not tensor[1:].flags.owndata
        assert tensor[1:].ctypes.data == tensor.numpy().ctypes.data + 8 * values.itemsize
        same(np.stack(list(tensor)), values)
        with pytest.raises(IndexError):
            tensor[3]
    assert len(tensors["all.I32"]) == 3
    assert len(tensors["odd.empty"]) == 0
    with pytest.raises(TypeError, match="scalar"):
        len(tensors["odd.scalar"])
    assert tensors["odd.scalar"][()] == expected(ODD_SHAPES["odd.scalar"])[()]


def test_repr(tensors: daxfs.Tensors) -> None:
    tensor = tensors["all.BF16"]
    assert tensor.alignment >= 256
    assert repr(tensor) == (
        f"<daxfs.Tensor 'all.BF16': BF16 (3, 8), 48 bytes, alignment {tensor.alignment}, in 'model.safetensors'>"
    )


def test_cannot_be_made(tensors: daxfs.Tensors) -> None:
    with pytest.raises(TypeError, match=r"daxfs\.open"):
        daxfs.Tensor()
    with pytest.raises(TypeError):
        daxfs.Tensors()


@pytest.mark.parametrize("plain", [False, True])
def test_checkpoint(checkpoint: Path, plain: bool) -> None:
    specs = {name: spec for shard in SHARDS.values() for name, spec in shard.items()}
    with daxfs.pack(checkpoint, plain=plain) as image:
        for place in (None, "", "model.safetensors.index.json"):
            tensors = image.tensors(place)
            assert list(tensors) == sorted(specs)
            assert tensors.indexed is not plain
            assert sorted(shard.path for shard in tensors.shards) == sorted(SHARDS)
            for name, spec in specs.items():
                same(np.asarray(tensors[name]), expected(spec))
                assert tensors[name].file.path in SHARDS
                assert name in SHARDS[tensors[name].file.path]
            assert "2 files" in repr(tensors)
        shard = image.tensors("model-00001-of-00002.safetensors")
        assert list(shard) == ["embed.weight", "layers.0.norm"]


def test_which_tensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with daxfs.pack(tmp_path) as image, pytest.raises(daxfs.NotFoundError, match="safetensors"):
        image.tensors()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name / "m.safetensors", {name: Spec.filled("U8", (4,))})
    with daxfs.pack(tmp_path) as image:
        with pytest.raises(daxfs.DaxfsError, match=r"a/m\.safetensors"):
            image.tensors()
        assert list(image.tensors("a")) == ["a"]
        assert list(image.tensors(b"/b/m.safetensors")) == ["b"]
        with pytest.raises(daxfs.NotFoundError):
            image.tensors("c")


def test_a_checkpoint_that_lacks_a_shard(checkpoint: Path, tmp_path: Path) -> None:
    index = (checkpoint / "model.safetensors.index.json").read_text()
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with daxfs.pack(tmp_path, plain=True) as image, pytest.raises(daxfs.FormatError, match="shard"):
        dict(image.tensors())


def test_a_broken_header(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m.safetensors", {"x": Spec("F32", (3,), b"too short")})
    with daxfs.pack(tmp_path, plain=True) as image:
        with pytest.raises(daxfs.FormatError, match='"x"'):
            image.tensors()
        with pytest.raises(ValueError, match='"x"'):
            image["m.safetensors"].keys()
