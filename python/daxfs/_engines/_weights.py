"""The weights of an image as engines iterate over them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from daxfs import _locate
from daxfs.safetensors._open import tensors_of

FORMAT = "daxfs"
# The key of --model-loader-extra-config that names the image; without it the model's name does.
KEY = "image"


@dataclass(frozen=True)
class Settings:
    """What an engine's configuration says to us, and the rest of it, which is the engine's own."""

    image: str | None
    rest: dict[str, Any]

    @classmethod
    def of(cls, extra: Any) -> Settings:
        """Take ours out of the extra configuration of a loader."""
        if not isinstance(extra, dict):
            msg = f"--model-loader-extra-config is an object such as {{{KEY!r}: 'daxfs://llama'}}, not {extra!r}"
            raise ValueError(msg)
        image = extra.get(KEY)
        if image is not None and not isinstance(image, str):
            msg = f"--model-loader-extra-config: {KEY!r} is the name of an image, not {image!r}"
            raise ValueError(msg)
        return cls(image, {key: value for key, value in extra.items() if key != KEY})

    def source(self, model: str, primary: str) -> str | None:
        """Return the image with a model's weights; None for a model of another place."""
        if _locate.locate(model) is not None:
            return model
        if self.image is None or model != primary:
            return None
        return self.image


class OfImage:
    """What the loaders of both engines have before the engine's own class."""

    def __init__(self, load_config: Any) -> None:
        self._settings = Settings.of(load_config.model_loader_extra_config)
        self._primary = ""
        own = copy.copy(load_config)
        own.model_loader_extra_config = self._settings.rest
        # The engine's loader is the next class.
        super().__init__(own)  # type: ignore[call-arg]

    def _require(self, model: str) -> None:
        """Refuse a model that is no image, and for which none is named."""
        if self._settings.source(model, model) is None:
            raise missing(model)


def missing(model: str) -> ValueError:
    """Say how an image is named."""
    msg = f"--load-format {FORMAT}: {model!r} is no image; name one by --model-loader-extra-config"
    return ValueError(f'{msg} \'{{"{KEY}": "daxfs://NAME"}}\', or give the model as one')


def weights(source: str, subfolder: str | None, skip: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    """Iterate over names and tensors of torch, which are views of the image."""
    location = _locate.locate(source)
    name = str(location.join(subfolder)) if location is not None and subfolder else source
    for key, tensor in tensors_of(name, private=True).items():
        if not skip(key):
            yield key, tensor.torch()
