"""Models that are loaded without transformers' loader are those that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import daxfs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_transformers import is_view  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

from daxfs import _direct  # noqa: E402 - after transformers
from daxfs.torch import save_model  # noqa: E402
from daxfs.transformers import from_pretrained  # noqa: E402

# Under the names that configurations have for these.
SMALL: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "layer_types": None}
SMALL |= dict.fromkeys(["hidden_size", "n_embd", "word_embed_proj_dim", "dim"], 32)
SMALL |= dict.fromkeys(["intermediate_size", "n_inner", "ffn_dim", "hidden_dim"], 64)
SMALL |= dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_key_value_heads"], 2)
SMALL |= dict.fromkeys(["num_attention_heads", "n_head", "n_heads"], 4)
SMALL |= dict.fromkeys(["max_position_embeddings", "n_positions"], 64)
CLASSES = (transformers.AutoModelForCausalLM, transformers.AutoModel)


def make(model_type: str) -> Any:
    default = CONFIG_MAPPING[model_type]()
    config = type(default)(**{key: value for key, value in SMALL.items() if hasattr(default, key)})
    # Encoders have heads with biases that no checkpoint has.
    auto = CLASSES[model_type in {"bert", "distilbert", "mpnet", "roberta", "xlm-roberta"}]
    torch.manual_seed(0)
    return auto.from_config(config).to(torch.bfloat16)


def values(pairs: Any) -> dict[str, tuple[torch.dtype, list[Any]]]:
    return {name: (value.dtype, value.tolist()) for name, value in pairs}


@pytest.mark.parametrize("model_type", sorted(_direct.TYPES))
def test_models_are_those_of_transformers(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    make(model_type).save_pretrained(tmp_path / "m")
    image = tmp_path / "m.daxfs"
    daxfs.pack(tmp_path / "m", image)
    found: list[Any] = []
    real = _direct.load
    monkeypatch.setattr(_direct, "load", lambda *arguments: found.append(real(*arguments)) or found[-1])
    model = from_pretrained(image)
    assert found == [model]
    expected = type(model).from_pretrained(tmp_path / "m")
    assert values(model.state_dict().items()) == values(expected.state_dict().items())
    assert values(model.named_buffers()) == values(expected.named_buffers())
    assert all(is_view(value, image) for value in model.parameters())
    assert [value.requires_grad for value in model.parameters()] == [v.requires_grad for v in expected.parameters()]
    groups = [
        [name for name, other in m.named_parameters(remove_duplicate=False) if other is value]
        for m in (model, expected)
        for value in m.parameters()
    ]
    assert groups[: len(groups) // 2] == groups[len(groups) // 2 :]
    name = {"_name_or_path": None}
    assert model.config.to_dict() | name == expected.config.to_dict() | name
    assert not model.training
    assert all(module._is_hf_initialized for module in model.modules())
    # The one reason to leave its loader out: transformers has no rule for this type.
    rules = pytest.importorskip("transformers.conversion_mapping")
    assert rules.get_model_conversion_mapping(model, add_legacy=False) == []


def opened(state: Mapping[str, torch.Tensor]) -> daxfs.Tensors:
    return save_model(state).tensors()


def test_what_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("qwen2")
    cls, config, state = type(model), model.config, model.state_dict()
    config.dtype = torch.bfloat16

    def load(options: Mapping[str, Any], **changed: torch.Tensor | None) -> Any:
        new = {**state, **{name.replace("__", "."): value for name, value in changed.items()}}
        return _direct.load(cls, config, opened({k: v for k, v in new.items() if v is not None}), options)

    norm = state["model.norm.weight"]
    assert load({}) is not None
    assert load({"dtype": "auto"}) is not None
    assert load({"dtype": torch.bfloat16, "attn_implementation": "eager"}).config._attn_implementation == "eager"
    assert load({"dtype": torch.float32}) is None
    assert load({"device_map": "cpu"}) is None
    assert load({"output_loading_info": True}) is None
    assert load({}, model__norm__weight=None) is None
    assert load({}, model__other__weight=norm + 1) is None
    assert load({}, model__norm__weight=norm.float()) is None
    assert load({}, model__norm__weight=norm[:16]) is None
    with torch.device("meta"):
        assert _direct.load(cls, config, opened(state), {}) is None
    rules = pytest.importorskip("transformers.conversion_mapping")
    monkeypatch.setattr(rules, "USER_REGISTERED_MAPPINGS", ["qwen2"])
    assert load({}) is None
    monkeypatch.undo()
    config.model_type = "other"
    assert load({}) is None


def test_which_of_two_values_a_parameter_has_is_transformers_to_say() -> None:
    model = make("gemma")
    cls, config, state = type(model), model.config, model.state_dict()
    config.dtype = torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert _direct.load(cls, config, opened(state), {}) is not None
    other = {**state, "lm_head.weight": state["lm_head.weight"] + 1}
    assert _direct.load(cls, config, opened(other), {}) is None
