"""SGLang: ``--load-format daxfs``, by the entry point sglang.srt.plugins."""

from __future__ import annotations

import copy
from typing import Any

from daxfs._engines import _weights


def register() -> None:
    """Have SGLang take the format; SGLang calls this in each of its processes, and applies the hook."""
    from sglang.srt.arg_groups.choices import (  # type: ignore[import-not-found]  # noqa: PLC0415
        LOAD_FORMAT_CHOICES,
        add_load_format_choices,
    )
    from sglang.srt.plugins.hook_registry import (  # type: ignore[import-not-found]  # noqa: PLC0415
        HookRegistry,
        HookType,
    )

    if _weights.FORMAT not in LOAD_FORMAT_CHOICES:
        add_load_format_choices([_weights.FORMAT])
    HookRegistry.register("sglang.srt.configs.load_config.LoadConfig._verify_load_format", _verify, HookType.AROUND)


def _verify(original: Any, config: Any) -> None:
    """Put our loader in the place of the name, which SGLang's own list of names ends without."""
    if isinstance(config.load_format, str) and config.load_format.lower() == _weights.FORMAT:
        config.load_format = loader()
    else:
        original(config)


def loader() -> type[Any]:
    """Return the class of loaders, made when it is needed."""
    from sglang.srt.model_loader.loader import (  # type: ignore[import-not-found]  # noqa: PLC0415
        DefaultModelLoader,
    )

    class DaxfsModelLoader(_weights.OfImage, DefaultModelLoader):  # type: ignore[misc]
        """Takes weights from an image: views, which SGLang copies to where it computes."""

        def download_model(self, model_config: Any) -> None:
            self._require(model_config.model_path)

        def resolve_model_weights(self, model_config: Any, model: Any) -> Any:
            """Return the places of weights, which have no files that could be read ahead."""
            self._primary = model_config.model_path
            return super().resolve_model_weights(model_config, model)

        def _prepare_weights(self, model_name_or_path: str, *args: Any, **options: Any) -> Any:
            image = self._settings.source(model_name_or_path, self._primary)
            if image is None:
                return super()._prepare_weights(model_name_or_path, *args, **options)
            return image, [], False

        def _get_all_weights(self, model_config: Any, model: Any) -> Any:
            self._primary = model_config.model_path
            yield from super()._get_all_weights(model_config, model)

        def _get_weights_iterator(self, source: Any, **options: Any) -> Any:
            image = self._settings.source(source.model_or_path, self._primary)
            if image is None and source.model_or_path == self._primary:
                raise _weights.missing(source.model_or_path)
            if image is None:
                # A part of the model that lies elsewhere.
                from sglang.srt.configs.load_config import (  # type: ignore[import-not-found]  # noqa: PLC0415
                    LoadFormat,
                )

                other = copy.copy(self.load_config)
                other.load_format = LoadFormat.AUTO
                return DefaultModelLoader(other)._get_weights_iterator(source, **options)
            found = _weights.weights(image, None, lambda _: False)
            return ((source.prefix + name, tensor) for name, tensor in found)

    return DaxfsModelLoader
