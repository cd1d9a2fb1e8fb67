"""daxfs.transformers: real models of transformers, whose parameters are views of an image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import daxfs

from support import mappings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from daxfs.transformers import from_pretrained  # noqa: E402 - after transformers

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
MAKE: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SMALL, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True)
    ),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    ),
}
UNKNOWN = "[UNK]"
IDS = torch.tensor([[3, 9, 27, 5]])


def make_tokenizer() -> Any:
    words = {word: number for number, word in enumerate([UNKNOWN, "hello", "world", "!"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=UNKNOWN))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token=UNKNOWN)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of each kind; that of Llama in several shards of bf16."""
    found = {}
    for name, make in MAKE.items():
        torch.manual_seed(0)
        model = make().eval()
        if name == "llama":
            model.to(torch.bfloat16)
            model.generation_config.max_new_tokens = 5
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name], max_shard_size="30KB" if name == "llama" else "1GB")
        make_tokenizer().save_pretrained(found[name])
    assert len(list(found["llama"].glob("*.safetensors"))) > 1
    return found


@pytest.fixture(scope="session")
def images(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("images")
    for name, folder in folders.items():
        daxfs.pack(folder, top / f"{name}.daxfs")
    return {name: top / f"{name}.daxfs" for name in folders}


def is_view(tensor: Any, image: Path) -> bool:
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in mappings(str(image))]
    return any(start <= tensor.data_ptr() < end for start, end in spans)


def run(model: Any) -> Any:
    with torch.no_grad():
        extra = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
        return model(input_ids=IDS, **extra).logits


@pytest.mark.parametrize("name", MAKE)
def test_parameters_are_views_and_results_the_same(
    name: str, folders: dict[str, Path], images: dict[str, Path]
) -> None:
    model = from_pretrained(images[name])
    expected = type(model).from_pretrained(folders[name])
    assert type(model) is type(MAKE[name]())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # What transformers makes itself, such as a bias that is not saved, is nobody's view. Its loader
    # copies a bias with two names; ours leaves it where it is.
    own = {key for key, value in expected.named_parameters(remove_duplicate=False) if not is_view(value, folders[name])}
    assert {key for key, value in parameters.items() if not is_view(value, images[name])} <= own
    assert len(own) <= 2
    assert not any(value.device.type == "meta" for _, value in model.named_buffers())
    assert {key: value.dtype for key, value in parameters.items()} == {
        key: value.dtype for key, value in expected.named_parameters(remove_duplicate=False)
    }
    assert model.config.to_diff_dict() == expected.config.to_diff_dict()
    assert torch.equal(run(model), run(expected))
    assert not model.training


def test_tied_names_are_one_parameter(images: dict[str, Path]) -> None:
    model = from_pretrained(images["qwen3"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in daxfs.open(images["qwen3"]).tensors()


def test_generation(folders: dict[str, Path], images: dict[str, Path]) -> None:
    model = from_pretrained(images["llama"])
    expected = type(model).from_pretrained(folders["llama"])
    assert model.generation_config.max_new_tokens == 5
    assert model.generation_config.to_diff_dict() == expected.generation_config.to_diff_dict()
    made = model.generate(IDS, do_sample=False)
    assert made.shape == (1, 9)
    assert torch.equal(made, expected.generate(IDS, do_sample=False))


def test_auto_classes(images: dict[str, Path]) -> None:
    llama = images["llama"]
    model = from_pretrained(llama, transformers.AutoModelForCausalLM)
    assert isinstance(model, transformers.LlamaForCausalLM)
    base = from_pretrained(llama, transformers.AutoModel)
    assert isinstance(base, transformers.LlamaModel)
    assert is_view(base.embed_tokens.weight, llama)
    assert isinstance(from_pretrained(llama, transformers.LlamaForCausalLM), transformers.LlamaForCausalLM)
    assert isinstance(from_pretrained(llama, transformers.AutoConfig), transformers.LlamaConfig)
    tokenizer = from_pretrained(llama, transformers.AutoTokenizer)
    assert tokenizer("hello world !")["input_ids"] == [1, 2, 3]


def test_other_types_and_devices(images: dict[str, Path]) -> None:
    model = from_pretrained(images["llama"], dtype=torch.float32)
    assert model.dtype == torch.float32
    assert not is_view(model.lm_head.weight, images["llama"])
    if pytest.importorskip("importlib.util").find_spec("accelerate"):
        model = from_pretrained(images["llama"], device_map="cpu")
        assert is_view(model.lm_head.weight, images["llama"])
    model, info = from_pretrained(images["llama"], output_loading_info=True)
    assert not info["missing_keys"]
    assert is_view(model.lm_head.weight, images["llama"])


def test_subfolders_and_opened_images(folders: dict[str, Path], images: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tree/parts").mkdir(parents=True)
    (tmp_path / "tree/parts/text").symlink_to(folders["bert"])
    (tmp_path / "tree/parts/other").symlink_to(folders["t5"])
    daxfs.pack(tmp_path / "tree", tmp_path / "m.daxfs", links="follow")
    image = daxfs.open(tmp_path / "m.daxfs", private=True)
    expected = run(from_pretrained(images["bert"]))
    for source, subfolder in (
        (f"{tmp_path}/m.daxfs!/parts/text", ""),
        (tmp_path / "m.daxfs", "parts/text"),
        (f"{tmp_path}/m.daxfs!/parts", "text"),
        (image, "parts/text"),
    ):
        model = from_pretrained(source, subfolder=subfolder)
        assert torch.equal(run(model), expected)
    assert model.name_or_path == "an image!/parts/text"
    with pytest.raises(FileNotFoundError, match=r"no config.json in .*m.daxfs: name the directory"):
        from_pretrained(tmp_path / "m.daxfs")
    with pytest.raises(daxfs.NotFoundError):
        from_pretrained(image, subfolder="nowhere")


def test_training_leaves_the_image_alone(images: dict[str, Path]) -> None:
    before = images["bert"].read_bytes()
    model = from_pretrained(images["bert"]).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    torch.optim.AdamW(model.parameters(), 0.1).step()
    assert images["bert"].read_bytes() == before


def test_a_class_that_transformers_does_not_have(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    config = json.loads((folders["bert"] / "config.json").read_text())
    config["architectures"] = ["OddModel"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to(folders["bert"] / "model.safetensors")
    daxfs.pack(folder, tmp_path / "odd.daxfs", links="follow")
    with pytest.raises(ValueError, match=r"none of the classes in config.json: \['OddModel'\]; name one"):
        from_pretrained(tmp_path / "odd.daxfs")
    model = from_pretrained(tmp_path / "odd.daxfs", transformers.AutoModelForMaskedLM)
    assert isinstance(model, transformers.BertForMaskedLM)
