"""The package as typed code uses it; mypy checks this file, and it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

import daxfs

if TYPE_CHECKING:
    import numpy.typing as npt


def total(tensors: Mapping[str, daxfs.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def test_usage(path: Path) -> None:
    with daxfs.open(path) as image:
        config: dict[str, int] = json.loads(image["config.json"].read_bytes())
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
        extent: Optional[tuple[int, int]] = weights.extent
        child: daxfs.File | daxfs.Directory = image.directory()["sub"]
    assert config == {"hidden_size": 8}
    assert total(tensors) == sum(t.nbytes for t in weights.values())
    assert array.shape == shared.shape == shape
    assert view.nbytes == weights.size
    assert maybe is None
    assert default == 0
    assert names
    assert extent
    assert isinstance(child, daxfs.Directory)


def test_pack_overloads(tree: Path, tmp_path: Path) -> None:
    image: daxfs.Image = daxfs.pack(tree)
    image.close()
    size: int = daxfs.pack(tree, tmp_path / "x.daxfs")["image_bytes"]
    assert size == (tmp_path / "x.daxfs").stat().st_size
