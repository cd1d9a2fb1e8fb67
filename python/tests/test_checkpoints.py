"""Checkpoints of PyTorch, written by the real torch: their tensors lie in the image, and nothing of a pickle is run."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

import daxfs

torch = pytest.importorskip("torch")


def packed(folder: Path) -> daxfs.Image:
    """Pack a folder, compare the image with it, and open the image."""
    image = folder.parent / f"{folder.name}.daxfs"
    daxfs.pack(folder, image)
    subprocess.run([Path(sys.executable).parent / "daxfs", "verify", image, folder], check=True)
    return daxfs.open(image)


def same(tensor: Any, wanted: Any) -> None:
    """Compare bit for bit."""
    got = tensor.torch()
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    assert torch.equal(got.reshape(-1).view(torch.uint8), wanted.contiguous().reshape(-1).view(torch.uint8))


@pytest.fixture
def state() -> dict[str, Any]:
    """One tensor of each kind, two that are tied, and one that is part of another."""
    torch.manual_seed(0)
    weight = torch.randn(30, 64)
    made = {str(dtype): torch.randn(2, 8).to(dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)}
    made |= {str(dtype): torch.arange(6).to(dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)}
    made |= {str(dtype): torch.randn(16).to(dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)}
    return made | {
        "embed.weight": weight,
        "head.weight": weight,
        "rows": weight[10:20],
        "uint16": torch.tensor([1, 65535], dtype=torch.int32).to(torch.uint16),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "complex": torch.randn(3, dtype=torch.complex64),
    }


def test_every_dtype_is_a_view(tmp_path: Path, state: dict[str, Any]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    image = packed(folder)
    tensors = image.tensors()
    assert tensors.indexed
    assert list(tensors) == sorted(state)
    for name, wanted in state.items():
        same(tensors[name], wanted)
    # Tied tensors are tied, and part of another one is: all of it lies in the image once.
    start = tensors["embed.weight"].torch().data_ptr()
    assert tensors["head.weight"].torch().data_ptr() == start
    assert tensors["rows"].torch().data_ptr() == start + 10 * 64 * 4


def test_what_training_saves_has_joined_names(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    whole = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(rate=1),
        "ordered": OrderedDict(parameter=torch.nn.Parameter(torch.ones(2))),
    }
    torch.save(whole, folder / "last.pt")
    tensors = packed(folder)["last.pt"].tensors()
    for name, wanted in module.state_dict().items():
        same(tensors[f"model.{name}"], wanted)
    same(tensors["ordered.parameter"], torch.ones(2))
    same(tensors["optimizer.state.0.exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert tensors.metadata["epoch"] == 3


def test_a_single_tensor(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    torch.save(torch.arange(4), folder / "one.pth")
    same(packed(folder)["one.pth"].tensors()["tensor"], torch.arange(4))


class Evil:
    """What pickles are feared for."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    torch.save({"evil": Evil(), "weight": torch.ones(2)}, folder / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    tensors = packed(folder).tensors()
    assert list(tensors) == ["weight"]
    same(tensors["weight"], torch.ones(2))
    assert not Path("touched").exists()


def test_what_cannot_be_used_in_place_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    torch.save({"t": torch.randn(3, 4).T}, folder / "transposed.pt")
    torch.save({"t": torch.ones(2)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    # They are sound: the packer says what it could not index, and verify has nothing to say.
    image = packed(folder)
    with pytest.raises(daxfs.FormatError, match="contiguous"):
        image["transposed.pt"].tensors()
    with pytest.raises(daxfs.FormatError, match="before 1.6"):
        image["pytorch_model.bin"].tensors()


def test_a_list_of_what_was_not_downloaded_is_no_fault(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    folder = tmp_path / "twins"
    folder.mkdir()
    safetensors.save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    shards = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    (folder / "pytorch_model.bin.index.json").write_text(
        '{"weight_map": {"a": "%s", "b": "%s"}}' % tuple(shards),  # noqa: UP031
    )
    assert list(packed(folder).tensors()) == ["w"]
