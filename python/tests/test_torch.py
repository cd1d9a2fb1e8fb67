"""daxfs.torch: modules over images, and images of modules."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import daxfs

from support import mappings

torch = pytest.importorskip("torch")
nn = torch.nn

from daxfs import torch as for_torch  # noqa: E402 - after torch


class Rotary(nn.Module):  # type: ignore[misc, name-defined]
    """Has a buffer that is in no checkpoint, and one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10.0 ** (torch.arange(0, 8, 2) / 8)), persistent=False)
        self.register_buffer("steps", torch.tensor(3))


class Model(nn.Module):  # type: ignore[misc, name-defined]
    """Has a tied head, a parameter that is no layer's, and buffers."""

    def __init__(self, dtype: Any = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8, dtype=dtype)
        self.rotary = Rotary()
        self.layers = nn.ModuleList(nn.Linear(8, 8, dtype=dtype) for _ in range(2))
        self.norm = nn.Parameter(torch.ones(8, dtype=dtype))
        self.bn = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 16, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight

    def forward(self, ids: Any) -> Any:
        hidden = self.embed(ids) * self.norm
        for layer in self.layers:
            hidden = layer(hidden) + self.rotary.inv_freq.sum().to(hidden.dtype)
        return self.head(hidden)


IDS = torch.tensor([[1, 5, 9]])


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = Model()
    model.rotary.steps.fill_(7)
    model.bn.running_mean.copy_(torch.arange(8))
    return model.eval()


@pytest.fixture
def packed(model: Any, tmp_path: Path) -> Path:
    for_torch.save_model(model, tmp_path / "m.daxfs", files={"config.json": "{}", "sub/t.bin": b"\x00\xff"})
    return tmp_path / "m.daxfs"


def is_mapped(tensor: Any, name: str) -> bool:
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in mappings(name)]
    return any(start <= tensor.data_ptr() < end for start, end in spans)


def empty() -> Any:
    with for_torch.empty_on_meta():
        return Model().eval()


def test_parameters_become_views(model: Any, packed: Path) -> None:
    loaded = empty()
    assert loaded.embed.weight.device.type == "meta"
    assert for_torch.load_model(loaded, packed) == ([], [])
    for name, value in [*loaded.named_parameters(), *loaded.named_buffers()]:
        assert is_mapped(value, "m.daxfs") == (name != "rotary.inv_freq"), name
    for name, parameter in loaded.named_parameters():
        assert isinstance(parameter, nn.Parameter)
        assert parameter.requires_grad, name
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded(IDS), model(IDS))
    assert loaded.rotary.steps == 7
    assert torch.equal(loaded.bn.running_mean, model.bn.running_mean)


def test_what_is_written_stays_in_the_process(packed: Path) -> None:
    before = packed.read_bytes()
    loaded = empty()
    for_torch.load_model(loaded, packed)
    loaded(IDS).sum().backward()
    torch.optim.SGD(loaded.parameters(), 0.1).step()
    assert packed.read_bytes() == before
    other = empty()
    for_torch.load_model(other, packed)
    assert not torch.equal(other.head.weight, loaded.head.weight)


def test_modules_with_memory_lose_it(model: Any, packed: Path) -> None:
    torch.manual_seed(1)
    loaded = Model().eval()
    for_torch.load_model(loaded, daxfs.open(packed).tensors())
    assert is_mapped(loaded.embed.weight, "m.daxfs")
    assert torch.equal(loaded(IDS), model(IDS))


def test_types_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    image = for_torch.save_model(Model(torch.bfloat16))
    loaded = empty()
    for_torch.load_model(loaded, image)
    assert loaded.head.weight.dtype == torch.bfloat16
    assert loaded.rotary.steps.dtype == torch.int64


def test_buffers_of_no_checkpoint_are_not_left_without_values(packed: Path) -> None:
    with torch.device("meta"):
        loaded = Model()
    with pytest.raises(RuntimeError, match=r'empty_on_meta\(\): "rotary.inv_freq"$'):
        for_torch.load_model(loaded, packed)
    assert for_torch.load_model(loaded, packed, strict=False) == ([], [])
    assert loaded.rotary.inv_freq.device.type == "meta"


def test_names_that_are_missing_and_too_many(model: Any) -> None:
    state = model.state_dict()
    del state["layers.1.bias"]
    del state["embed.weight"]
    state["other"] = torch.zeros(1)
    image = for_torch.save_model(state)
    with pytest.raises(RuntimeError) as caught:
        for_torch.load_model(empty(), image)
    assert str(caught.value).splitlines() == [
        "Error(s) in loading state_dict for Model:",
        '    Missing key(s) in state_dict: "layers.1.bias"',
        '    Unexpected key(s) in state_dict: "other"',
    ]
    loaded = empty()
    assert for_torch.load_model(loaded, image, strict=False) == (["layers.1.bias"], ["other"])
    # The head is stored under its other name.
    assert torch.equal(loaded.embed.weight, model.embed.weight)
    assert loaded.head.weight is loaded.embed.weight
    with pytest.raises(RuntimeError, match="size mismatch for norm"):
        for_torch.load_model(empty(), for_torch.save_model({**model.state_dict(), "norm": torch.ones(3)}))


def test_state_dict_is_lazy(packed: Path, model: Any) -> None:
    state = for_torch.state_dict(packed)
    assert isinstance(state, dict)
    weight = state["layers.0.weight"]
    assert (weight.get_shape(), weight.get_dtype()) == ([8, 8], "F32")
    assert torch.equal(weight[...], model.layers[0].weight)
    part = weight[:, 2:4]
    assert part.data_ptr() == weight[...].data_ptr() + 8
    assert torch.equal(part, model.layers[0].weight[:, 2:4])
    with daxfs.open(packed) as image:
        for source in (image, image.tensors(), image["model.safetensors"], dict(image.tensors()), str(packed)):
            assert for_torch.state_dict(source).keys() == state.keys()


DTYPES = ["bool", "uint8", "int8", "int16", "uint16", "float16", "bfloat16", "int32", "uint32", "float32", "float64"]
DTYPES += ["int64", "uint64", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2"]


def test_all_types_are_packed_as_safetensors_has_them(tmp_path: Path) -> None:
    state = {}
    for number, name in enumerate(DTYPES):
        size = getattr(torch, name).itemsize
        values = (torch.arange(6 * size) + number).to(torch.uint8) % (2 if name == "bool" else 255)
        state[name] = values.view(getattr(torch, name)).view(2, 3)
    state["scalar"] = torch.tensor(2.5)
    state["nothing"] = torch.empty(0, 4)
    state["turned"] = torch.arange(6.0).view(2, 3).T
    state["complex"] = torch.tensor([1 + 2j], dtype=torch.complex64)
    state["conjugate"] = state["complex"].conj()
    state["imaginary"] = state["complex"].imag
    state["negative"] = state["conjugate"].imag
    image = for_torch.save_model(state, metadata={"made": "here"}, name="sub/weights.safetensors")
    file = image["sub/weights.safetensors"]
    assert file.metadata == {"format": "pt", "made": "here"}
    for name, value in state.items():
        found = file[name].torch()
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        bits = torch.int64 if value.dtype == torch.complex64 else None
        expected = value.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
        assert torch.equal(found.reshape(-1).view(bits or torch.uint8), expected.reshape(-1).view(bits or torch.uint8))
        assert file[name].offset % 256 == 0 or not value.numel()
    # safetensors reads the file as it is stored.
    theirs = pytest.importorskip("safetensors.torch")
    (tmp_path / "w.safetensors").write_bytes(file.read_bytes())
    loaded = theirs.load_file(tmp_path / "w.safetensors")
    assert {name for name in loaded if not name.startswith("__daxfs_pad_")} == state.keys()
    assert torch.equal(loaded["turned"], state["turned"])


def test_what_lies_beside_the_weights(packed: Path, model: Any, tmp_path: Path) -> None:
    with daxfs.open(packed) as image:
        assert sorted(image) == ["config.json", "model.safetensors", "sub/t.bin"]
        assert image["sub/t.bin"].read_bytes() == b"\x00\xff"
        assert image["model.safetensors"].metadata == {"format": "pt", "head.weight": "embed.weight"}
    image = for_torch.save_model(model, into="memfd", files={"copy.daxfs": packed})
    assert image["copy.daxfs"].read_bytes() == packed.read_bytes()
    assert image.provenance == "sealed"
    for wrong in ("../x", "", "/"):
        with pytest.raises(ValueError, match="a name in the image"):
            for_torch.save_model(model, files={wrong: b""})


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (3, TypeError, "'x' is no tensor but int"),
        (torch.empty(1, device="meta"), ValueError, "'x' is on the device meta"),
        (torch.zeros(2).to_sparse(), ValueError, "'x': torch.sparse_coo of torch.float32"),
        (torch.zeros(1, dtype=torch.complex128), ValueError, "'x': torch.strided of torch.complex128"),
    ],
)
def test_what_cannot_be_packed(value: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        for_torch.save_model({"x": value})


class Unreadable(torch.Tensor):
    """A tensor that fails when it is copied elsewhere."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.copy_:
            raise ZeroDivisionError
        return super().__torch_function__(func, types, args, kwargs or {})


def test_nothing_is_left_open(model: Any) -> None:
    for_torch.save_model(model).close()
    before = sorted(os.listdir("/proc/self/fd"))
    for_torch.save_model(model).close()
    with pytest.raises(TypeError):
        for_torch.save_model({"x": torch.zeros(3), "y": 1})
    # The memory is there for as long as the error that refers to it.
    with pytest.raises(ZeroDivisionError) as caught:
        for_torch.save_model({"x": torch.ones(3), "y": torch.zeros(3).as_subclass(Unreadable)})
    assert caught.traceback[-2].locals["target"].sum() == 0
    del caught
    assert sorted(os.listdir("/proc/self/fd")) == before
