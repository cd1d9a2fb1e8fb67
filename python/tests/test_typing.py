"""The package as typed code uses it; mypy checks this file, and it runs."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np

import daxfs

if TYPE_CHECKING:
    import numpy.typing as npt


def on_a_gpu(image: daxfs.Image, tell: Callable[[int, int], None]) -> tuple[daxfs.DeviceHandle, int]:
    """Not run: the tests of what it does are in test_device.py."""
    with image.to("cuda:0", threads=2, verify=True, progress=tell) as gpu, gpu.share() as handle:
        file: daxfs.DeviceFile = gpu["model.safetensors"]
        maybe: Optional[daxfs.DeviceTensor] = file.get("nothing")
        tensors: Mapping[str, daxfs.DeviceTensor] = gpu.tensors()
        pointers: list[int] = [tensor.device_ptr for tensor in tensors.values()]
        attached: daxfs.DeviceImage = image.attach("cuda:0", handle)
        again: daxfs.DeviceImage = image.attach("cuda:0", 3, size=handle.size, uuid=handle.uuid)
        mapped: Mapping[str, daxfs.DeviceFile] = image.map("cuda:0", piece=2 << 20)
        pointer, read_only = tensors["all.F32"].__cuda_array_interface__["data"]
        part: daxfs.DeviceTensorPart = tensors["all.F32"][:, 2:4]
        strides: tuple[int, ...] = part.strides
        placed: daxfs.DeviceImage = image.to("cuda:0", plan={"ranks": 1, "rules": []}, rank=0)
        own: daxfs.DeviceTensorPart = placed.tensors()["all.F32"].part
        lookup: daxfs.DeviceLookup = gpu.lookup()
        print(strides, own, lookup.device_ptr + lookup.nbytes, daxfs.get_include())
        print(maybe, attached, again, mapped, pointer, read_only)
        return handle, sum(pointers)


def total(tensors: Mapping[str, daxfs.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def test_usage(path: Path) -> None:
    with daxfs.open(path) as image:
        config: dict[str, int] = json.load(image["config.json"].open())
        weights: daxfs.File = image["model.safetensors"]
        tensors: daxfs.Tensors = image.tensors()
        tensor: daxfs.Tensor = weights["all.F32"]
        shape: tuple[int, ...] = tensor.shape
        array: npt.NDArray[Any] = np.asarray(tensor)
        shared: npt.NDArray[Any] = np.from_dlpack(tensor)
        view: memoryview = memoryview(weights)
        maybe: Optional[daxfs.File] = image.get("nothing")
        default: daxfs.File | int = image.get("nothing", 0)
        names: list[str] = [name for name, file in image.items() if file.size]
        text: str = image["config.json"].read_text()
        line: str = image["config.json"].open("r").readline()
        head: bytes = image["config.json"].open().read(1) + weights[8:10] + weights.read_at(0, 8)
        raw: io.RawIOBase = weights.open(buffering=0)
        found: list[daxfs.File] = image.glob("*.json")
        merged: dict[str, daxfs.Tensor | int] = tensors | {"x": 1}
        zeros: npt.NDArray[Any] = np.zeros(tensor.shape, tensor.dtype)
        kind: tuple[str, str, int] = (tensor.dtype_name, tensor.dtype.name, tensor.dtype.itemsize)
        twice: tuple[daxfs.Tensor, daxfs.Image] = (copy.copy(tensor), copy.deepcopy(image))
        extent: Optional[tuple[int, int]] = weights.extent
        child: daxfs.File | daxfs.Directory = image.directory()["sub"]
    assert config == {"hidden_size": 8}
    assert total(tensors) == sum(t.nbytes for t in weights.values())
    assert array.shape == shared.shape == shape
    assert view.nbytes == weights.size
    assert maybe is None
    assert default == 0
    assert names
    assert (text, line, len(head), raw.tell()) == ('{"hidden_size": 8}', text, 11, 0)
    assert [file.path for file in found] == ["config.json", "hard.json", "config.json"], "the last one is a link"
    assert merged["x"] == 1
    assert (zeros.dtype, kind, twice[0].name) == (array.dtype, ("F32", "float32", 4), "all.F32")
    assert extent
    assert isinstance(child, daxfs.Directory)


def test_pack_overloads(tree: Path, tmp_path: Path) -> None:
    image: daxfs.Image = daxfs.pack(tree)
    image.close()
    size: int = daxfs.pack(tree, tmp_path / "x.daxfs")["image_bytes"]
    assert size == (tmp_path / "x.daxfs").stat().st_size
