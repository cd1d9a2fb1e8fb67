"""vLLM: ``--load-format daxfs``, by the entry point vllm.general_plugins."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator
from typing import Any

from daxfs._engines import _weights


def register() -> None:
    """Give vLLM a loader of images; vLLM calls this in each of its processes."""
    from vllm.model_executor.model_loader import (  # type: ignore[import-not-found]  # noqa: PLC0415
        get_model_loader,
        register_model_loader,
    )
    from vllm.model_executor.model_loader.default_loader import (  # type: ignore[import-not-found]  # noqa: PLC0415
        DefaultModelLoader,
    )
    from vllm.model_executor.model_loader.ep_weight_filter import (  # type: ignore[import-not-found]  # noqa: PLC0415
        should_skip_weight,
    )

    class DaxfsModelLoader(_weights.OfImage, DefaultModelLoader):  # type: ignore[misc]
        """Takes weights from an image: views, which vLLM copies to where it computes."""

        def download_model(self, model_config: Any) -> None:
            self._require(model_config.model)

        def get_all_weights(self, model_config: Any, model: Any) -> Generator[tuple[str, Any], None, None]:
            self._primary = model_config.model
            # vLLM logs how long it took from here.
            self.counter_before_loading_weights: float = time.perf_counter()
            yield from super().get_all_weights(model_config, model)

        def _get_weights_iterator(self, source: Any) -> Any:
            image = self._settings.source(source.model_or_path, self._primary)
            if image is None and source.model_or_path == self._primary:
                raise _weights.missing(source.model_or_path)
            if image is None:
                # A part of the model that lies elsewhere.
                other = copy.copy(self.load_config)
                other.load_format = "auto"
                return get_model_loader(other)._get_weights_iterator(source)
            unused = getattr(source, "is_unused_weight", None)

            def skip(name: str) -> bool:
                return should_skip_weight(name, self.local_expert_ids) or (unused is not None and unused(name))

            found = _weights.weights(image, getattr(source, "subfolder", None), skip)
            return ((source.prefix + name, tensor) for name, tensor in found)

    register_model_loader(_weights.FORMAT)(DaxfsModelLoader)
