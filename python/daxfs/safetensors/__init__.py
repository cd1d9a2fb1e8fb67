"""The interface of safetensors, over files in images: ``from daxfs.safetensors import safe_open``.

    with safe_open("llama.daxfs!/model.safetensors", framework="pt") as f:
        w = f.get_tensor("lm_head.weight")

A file is named by its path in an image (``llama.daxfs!/model.safetensors``, ``daxfs://NAME!/model.safetensors``), is a
``daxfs.File``, or a descriptor of an image. A directory or an image stands for the checkpoint in it, with all shards.
Names of ordinary files are passed on to the safetensors package, and so is what saves.

Tensors are views of the image, mapped copy-on-write, as safetensors maps files: what is written to them stays in this
process. A ``daxfs.File`` is as its image was opened.
"""

from daxfs.safetensors._errors import SafetensorError
from daxfs.safetensors._open import safe_open
from daxfs.safetensors._slice import SafeSlice

__all__ = ["SafeSlice", "SafetensorError", "safe_open"]


def __getattr__(name: str) -> object:
    # What works on bytes alone is safetensors' own.
    if name in {"TensorSpec", "deserialize", "serialize", "serialize_file"}:
        import safetensors  # noqa: PLC0415

        value: object = getattr(safetensors, name)
        return value
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
