"""The loaders for vLLM and SGLang, taken by the loader modules of these engines themselves."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engines import engine_of

import daxfs

from support import Spec, mappings, write_safetensors

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(sys.version_info < (3, 10), reason="the engines need Python 3.10")

TENSORS = {
    "embed.weight": Spec.filled("BF16", (16, 8), 1),
    "layers.0.experts.0.weight": Spec.filled("F32", (8,), 2),
    "layers.0.experts.1.weight": Spec.filled("F32", (8,), 3),
    "layers.0.unused": Spec.filled("F32", (8,), 4),
}


@pytest.fixture
def image(tmp_path: Path) -> str:
    (tmp_path / "tree/sub").mkdir(parents=True)
    write_safetensors(tmp_path / "tree/model.safetensors", TENSORS)
    write_safetensors(tmp_path / "tree/sub/model.safetensors", {"draft": Spec.filled("U8", (3,))})
    daxfs.pack(tmp_path / "tree", tmp_path / "llama.daxfs")
    return f"{tmp_path}/llama.daxfs!/model.safetensors"


class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Takes weights as the models of both engines do."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, Any] = {}

    def load_weights(self, weights: Iterator[tuple[str, Any]]) -> set[str]:
        self.loaded = dict(weights)
        return set(self.loaded)


def check(loaded: dict[str, Any], names: set[str]) -> None:
    assert loaded.keys() == names
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in mappings("llama.daxfs")]
    for name, tensor in loaded.items():
        assert tensor.view(-1).view(torch.uint8).numpy().tobytes() == TENSORS[name].data
        assert any(start <= tensor.data_ptr() < end for start, end in spans)


LOADERS = "vllm.model_executor.model_loader"


@pytest.fixture
def vllm() -> Iterator[Any]:
    real = [LOADERS, *(f"{LOADERS}.{name}" for name in ("base_loader", "default_loader", "ep_weight_filter"))]
    with engine_of("vllm", [*real, "vllm.plugins"], ["vllm/model_executor/model_loader/", "vllm/plugins/"]):
        envs = importlib.import_module("vllm.envs")
        envs.VLLM_PLUGINS = ["daxfs"]  # type: ignore[attr-defined]
        # As each process of vLLM does when it starts.
        importlib.import_module("vllm.plugins").load_general_plugins()
        yield importlib.import_module(LOADERS)


def vllm_config(extra: Any, **more: Any) -> Any:
    return SimpleNamespace(
        load_format="daxfs",
        model_loader_extra_config=extra,
        safetensors_load_strategy=None,
        use_tqdm_on_load=False,
        download_dir=None,
        ignore_patterns=None,
        pt_load_map_location="cpu",
        **more,
    )


def vllm_model(name: str) -> Any:
    return SimpleNamespace(model=name, revision=None, multimodal_config=None, quantization=None, is_moe=False)


def test_vllm(vllm: Any, image: str) -> None:
    loader = vllm.get_model_loader(vllm_config({"image": image, "num_threads": 2}))
    assert isinstance(loader, vllm.BaseModelLoader)
    assert type(loader).__name__ == "DaxfsModelLoader"
    model, config = Model(), vllm_model("meta-llama/whatever")
    loader.download_model(config)
    weights = dict(loader.get_all_weights(config, model))
    check(weights, set(TENSORS))
    # The model's name may be the image.
    loader = vllm.get_model_loader(vllm_config({}))
    check(dict(loader.get_all_weights(vllm_model(image), model)), set(TENSORS))


def test_vllm_loads_a_model(vllm: Any, image: str) -> None:
    model = Model()
    vllm.get_model_loader(vllm_config({"image": image})).load_weights(model, vllm_model("m"))
    check(model.loaded, set(TENSORS))


def test_vllm_leaves_out_what_a_rank_does_not_have(vllm: Any, image: str) -> None:
    loader = vllm.get_model_loader(vllm_config({"image": image}))
    loader.local_expert_ids = {1}
    model = Model()
    model.is_unused_checkpoint_weight = lambda name: name.endswith("unused")
    check(dict(loader.get_all_weights(vllm_model("m"), model)), {"embed.weight", "layers.0.experts.1.weight"})


def test_vllm_takes_other_parts_from_their_places(vllm: Any, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = vllm.get_model_loader(vllm_config({"image": image}))
    default = sys.modules[f"{LOADERS}.default_loader"].DefaultModelLoader  # type: ignore[attr-defined]
    asked = []

    def iterate(self: Any, source: Any) -> Any:
        asked.append((self.load_config.load_format, source.model_or_path))
        return iter([("elsewhere", torch.zeros(1))])

    monkeypatch.setattr(default, "_get_weights_iterator", iterate)
    model = Model()
    folder = image.partition("!")[0] + "!/sub"
    model.secondary_weights = [default.Source("draft/model", None), default.Source(folder, None, prefix="p.")]
    found = dict(loader.get_all_weights(vllm_model("m"), model))
    assert found.keys() == {*TENSORS, "elsewhere", "p.draft"}
    assert asked == [("auto", "draft/model")]


@pytest.mark.parametrize("extra", ["text", {"image": 3}, {"image": "daxfs://x", "what": 1}])
def test_vllm_refuses_wrong_configurations(vllm: Any, extra: Any) -> None:
    with pytest.raises(ValueError, match=r"extra.config|extra config"):
        vllm.get_model_loader(vllm_config(extra))


def test_vllm_says_how_an_image_is_named(vllm: Any) -> None:
    loader = vllm.get_model_loader(vllm_config({}))
    for call in (
        lambda: loader.download_model(vllm_model("meta-llama/x")),
        lambda: list(loader.get_all_weights(vllm_model("meta-llama/x"), Model())),
    ):
        with pytest.raises(ValueError, match="'meta-llama/x' is no image; name one by --model-loader-extra-config"):
            call()


@pytest.fixture
def sglang() -> Iterator[Any]:
    real = ["sglang.srt.arg_groups.choices", "sglang.srt.configs.load_config", "sglang.srt.model_loader.loader"]
    real += ["sglang.srt.plugins", "sglang.srt.plugins.hook_registry"]
    folders = ["sglang/srt/arg_groups/choices.py", "sglang/srt/configs/load_config.py"]
    folders += ["sglang/srt/model_loader/loader.py", "sglang/srt/plugins/"]
    with engine_of("sglang", real, folders):
        # As each process of SGLang does when it starts.
        importlib.import_module("sglang.srt.plugins").load_plugins()
        yield importlib.import_module("sglang.srt.model_loader.loader")


def sglang_config(extra: Any) -> Any:
    config = importlib.import_module("sglang.srt.configs.load_config").LoadConfig
    return config(load_format="DAXFS", model_loader_extra_config=extra)


def sglang_model(name: str) -> Any:
    return SimpleNamespace(
        model_path=name, revision=None, quantization=None, modelopt_quant=None, dtype=torch.float32, hf_config=None
    )


def test_sglang(sglang: Any, image: str) -> None:
    choices = importlib.import_module("sglang.srt.arg_groups.choices")
    assert choices.LOAD_FORMAT_CHOICES.count("daxfs") == 1
    loader = sglang.get_model_loader(sglang_config({"image": image}), sglang_model("m"))
    assert isinstance(loader, sglang.DefaultModelLoader)
    assert type(loader).__name__ == "DaxfsModelLoader"
    model, config = Model(), sglang_model("m")
    loader.download_model(config)
    check(dict(loader._get_all_weights(config, model)), set(TENSORS))
    loader = sglang.get_model_loader(sglang_config({}), sglang_model(image))
    check(dict(loader._get_all_weights(sglang_model(image), model)), set(TENSORS))


def test_sglang_loads_in_two_steps(sglang: Any, image: str) -> None:
    loader = sglang.get_model_loader(sglang_config({"image": image}), sglang_model("m"))
    (resolved,) = loader.resolve_model_weights(sglang_model("m"), Model())
    assert resolved.weight_files == ()
    found = loader._get_weights_iterator(
        resolved.source, resolved_source=resolved, startup_prefetch_started=True, startup_prefetch_active=False
    )
    check(dict(found), set(TENSORS))


def test_sglang_takes_its_own_formats_as_before(sglang: Any) -> None:
    module = importlib.import_module("sglang.srt.configs.load_config")
    config = module.LoadConfig(load_format="safetensors")
    assert config.load_format is module.LoadFormat.SAFETENSORS
    with pytest.raises(ValueError, match="nonsense"):
        module.LoadConfig(load_format="nonsense")


def test_sglang_refuses_and_says_how_an_image_is_named(sglang: Any) -> None:
    for extra in ({"image": 3}, {"image": "daxfs://x", "what": 1}):
        with pytest.raises(ValueError, match=r"extra.config|extra config"):
            sglang.get_model_loader(sglang_config(extra), sglang_model("m"))
    loader = sglang.get_model_loader(sglang_config({}), sglang_model("m"))
    for call in (
        lambda: loader.download_model(sglang_model("m")),
        lambda: list(loader._get_all_weights(sglang_model("m"), Model())),
    ):
        with pytest.raises(ValueError, match="'m' is no image; name one by --model-loader-extra-config"):
            call()


def test_entry_points_import_no_engine() -> None:
    for group, value in (
        ("vllm.general_plugins", "daxfs._engines.vllm:register"),
        ("sglang.srt.plugins", "daxfs._engines.sglang:register"),
    ):
        (point,) = [point for point in importlib.metadata.entry_points(group=group) if point.name == "daxfs"]
        assert point.value == value
        assert callable(point.load())
    assert not {"vllm", "sglang"} & sys.modules.keys()
