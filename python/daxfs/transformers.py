"""Models of transformers over images: their parameters are views on the CPU.

    model = daxfs.transformers.from_pretrained("llama.daxfs")
    tokenizer = daxfs.transformers.from_pretrained("llama.daxfs", AutoTokenizer)

An image that is given by its name is mapped copy-on-write, as safetensors maps files.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Union

import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

import daxfs
from daxfs import _direct, _locate
from daxfs.torch import state_dict

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Source = Union[str, os.PathLike[str], int, daxfs.Image]

__all__ = ["from_pretrained"]


def from_pretrained(
    source: Source, cls: Any = None, *, subfolder: str = "", variant: str | None = None, **options: Any
) -> Any:
    """Load a model or tokenizer, or what else has this method, from an image.

    source: the name of an image, or of a directory of it ("llama.daxfs!/text"), a descriptor, or an opened image.
    cls: a class of models, an Auto class, or one of tokenizers, processors and configurations. By default the class
        that config.json names in "architectures".
    subfolder: the directory in the image, or below the one that is named.
    variant: "fp16" for model.fp16.safetensors.
    options: those of the class's from_pretrained(): dtype, device_map, attn_implementation and the like.

    Parameters are views of the image where they stay on the CPU with the type of the checkpoint, and where
    transformers does not join or turn tensors to make them. Other types, and other devices, are copies.
    """
    image, top = _opened(source, subfolder)
    folder = image.path(top)
    if not _is_of_models(cls):
        return cls.from_pretrained(folder, **options)
    config = options.pop("config", None)
    revision = {key: options[key] for key in ("trust_remote_code",) if key in options}
    if config is None:
        if not os.path.exists(os.path.join(folder, "config.json")):  # noqa: PTH110, PTH118
            msg = f"no config.json in {_named(source, top)}: name the directory that has it (subfolder=)"
            raise FileNotFoundError(msg)
        config = AutoConfig.from_pretrained(folder, **revision)
    concrete = _concrete(cls, config, folder, revision)
    tensors = image.tensors(top or None, variant=variant)
    model = _direct.load(concrete, config, tensors, options)
    if model is None:
        state = state_dict(tensors)
        if "dtype" not in options and "torch_dtype" not in options and config.dtype is None:
            options["dtype"] = _dtype(state)
        model = concrete.from_pretrained(None, config=config, state_dict=state, **options)
    loaded = model[0] if isinstance(model, tuple) else model
    if loaded.can_generate() and os.path.exists(os.path.join(folder, "generation_config.json")):  # noqa: PTH110, PTH118
        loaded.generation_config = GenerationConfig.from_pretrained(folder)
    loaded.config.name_or_path = loaded.name_or_path = _named(source, top)
    return model


def _opened(source: Source, subfolder: str) -> tuple[daxfs.Image, str]:
    path = ""
    if isinstance(source, daxfs.Image):
        image = source
    else:
        location = None if isinstance(source, int) else _locate.locate(source)
        image = _locate.open_image(source if location is None else location.source, private=True)
        path = "" if location is None else location.path
    top = "/".join(part for part in f"{path}/{subfolder}".split("/") if part not in ("", "."))
    # By its own path, also behind a link.
    return image, image.directory(top).path if top else ""


def _named(source: Source, top: str) -> str:
    if isinstance(source, (daxfs.Image, int)):
        return f"an image{_locate.MARK}{top}" if top else "an image"
    location = _locate.locate(source)
    return str(_locate.Location(location.source if location else os.fspath(source), top))


def _is_of_models(cls: Any) -> bool:
    if cls is None or hasattr(cls, "_model_mapping"):
        return True
    return isinstance(cls, type) and issubclass(cls, PreTrainedModel)


def _concrete(cls: Any, config: PretrainedConfig, folder: str, options: dict[str, Any]) -> Any:
    """Return a class that loads without a path, which those that choose one do not."""
    if cls is not None and not hasattr(cls, "_model_mapping"):
        return cls
    mapping = getattr(config, "auto_map", None) or {}
    if options.get("trust_remote_code") and mapping:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module  # noqa: PLC0415 - seldom

        name = cls.__name__ if cls is not None else next((key for key in mapping if key.startswith("AutoModel")), "")
        if name in mapping:
            return get_class_from_dynamic_module(mapping[name], folder)
    if cls is not None:
        chosen = cls._model_mapping[type(config)]
        if not isinstance(chosen, (list, tuple)):
            return chosen
        names = {found.__name__: found for found in chosen}
        return next((names[name] for name in config.architectures or () if name in names), chosen[0])
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    msg = f"transformers {transformers.__version__} has none of the classes in config.json: {config.architectures}"
    raise ValueError(f"{msg}; name one, or an Auto class, as the second argument")


def _dtype(tensors: dict[str, Any]) -> Any:
    """Return the type of the first tensor of floats."""
    for value in tensors.values():
        dtype = value[...].dtype
        if dtype.is_floating_point:
            return dtype
    return None
