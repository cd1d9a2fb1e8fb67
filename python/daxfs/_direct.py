"""Models of transformers that need nothing of its loader: the checkpoint has the names, shapes and types of the module.

transformers makes the rules by which it converts the checkpoints of all its models, whichever it loads, and takes
tensors in threads. The models here have no rule of their own, and views take no time: daxfs.torch puts them in place.
What is not so simple is None, and transformers' own business.
"""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import torch

from daxfs.torch import empty_on_meta, load_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    import daxfs

# Types of models without a rule; the tests hold them against the rules that transformers has.
TYPES = frozenset(
    {
        "bert",
        "bloom",
        "cohere",
        "cohere2",
        "distilbert",
        "ernie4_5",
        "exaone4",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "granite",
        "helium",
        "llama",
        "mistral",
        "mpnet",
        "olmo",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "roberta",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
        "xlm-roberta",
    }
)
# Options that change nothing of what is loaded, besides the type.
_OPTIONS = {"attn_implementation", "dtype", "torch_dtype", "trust_remote_code"}


def load(cls: Any, config: Any, tensors: Mapping[str, daxfs.Tensor], options: Mapping[str, Any]) -> Any | None:
    """Return a model whose parameters are views of these tensors; None where transformers has to load it."""
    if not _is_simple(cls, config, options):
        return None
    try:
        from transformers.initialization import no_init_weights  # noqa: PLC0415 - it moves between versions
    except ImportError:
        return None
    own = copy.deepcopy(config)
    more = {key: options[key] for key in ("attn_implementation",) if key in options}
    with no_init_weights(), empty_on_meta():
        model = cls._from_config(own, dtype=config.dtype, **more)
    model.tie_weights()
    if model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict or not _fits(model, tensors):
        return None
    load_model(model, tensors)
    # As its own loader leaves them: who initialises parts of the model later leaves these alone.
    for initialised in (*model.modules(), *model.parameters()):
        initialised._is_hf_initialized = True
    return model.eval()


def _is_simple(cls: Any, config: Any, options: Mapping[str, Any]) -> bool:
    """Tell whether it can be done here by all that is known before the model is made."""
    types = {options.get("dtype"), options.get("torch_dtype")} - {None, "auto"}
    rules = sys.modules.get("transformers.conversion_mapping")
    return (
        getattr(config, "model_type", None) in TYPES
        and cls.__module__.startswith("transformers.models.")
        and options.keys() <= _OPTIONS
        and not options.get("trust_remote_code")
        and config.dtype is not None
        and types <= {config.dtype}
        and all(getattr(config, name, None) is None for name in ("quantization_config", "fusion_config"))
        and not getattr(type(config), "extra_files", ())
        and not getattr(rules, "USER_REGISTERED_MAPPINGS", ())
        # Parts of models, or their places, are chosen by others then.
        and "deepspeed" not in sys.modules
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
        and torch.empty(0).device.type == "cpu"
    )


def _fits(model: torch.nn.Module, tensors: Mapping[str, daxfs.Tensor]) -> bool:
    """Tell whether each value of the model's state is one tensor, and each tensor one value, of one type and shape."""
    state = model.state_dict(keep_vars=True)
    if not tensors.keys() <= state.keys():
        return False
    # Names of one parameter: which one counts where there are several is not decided here.
    found = [id(state[name]) for name in tensors]
    if len(found) != len(set(found)) or set(found) != {id(value) for value in state.values()}:
        return False
    made = ((tensor.torch(), state[name]) for name, tensor in tensors.items())
    if any(view.shape != value.shape or view.dtype != value.dtype for view, value in made):
        return False
    return all(value.device.type != "meta" or name in state for name, value in model.named_buffers())


__all__ = ["TYPES", "load"]
