"""The exception of safetensors; one of our own where that is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:

    class SafetensorError(Exception):
        """What is wrong with a file, or with what was asked of it."""

else:
    try:
        from safetensors import SafetensorError
    except ImportError:

        class SafetensorError(Exception):
            """What is wrong with a file, or with what was asked of it."""


__all__ = ["SafetensorError"]
