"""Open to first tensor, and to all touched: daxfs against safetensors, for numpy and, where it is, torch.

open_tensors MODEL.safetensors TENSOR SECONDS ROUNDS, with the image in $DAXFS_IMAGE.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes  # noqa: F401 - both sides need it for bf16; its import is not to be timed
import numpy as np
from safetensors import safe_open

import daxfs
from harness.rounds import interleave, timed
from workers.touch import touch

if TYPE_CHECKING:
    from collections.abc import Callable


def main(model: str, tensor: str, seconds: float, rounds: int) -> None:
    """Time all cases and print them."""
    name = Path(model).name

    def with_daxfs(convert: Callable[[daxfs.Tensor], object]) -> object:
        # Not closed here: letting go is not counted on either side.
        return convert(daxfs.open()[name][tensor])

    def with_safetensors(framework: str) -> object:
        return safe_open(model, framework=framework).get_tensor(tensor)

    def all_with_daxfs(convert: Callable[[daxfs.Tensor], np.ndarray]) -> int:
        return touch(convert(one) for one in daxfs.open()[name].values())

    def all_with_safetensors(framework: str, convert: Callable[[object], np.ndarray]) -> int:
        file = safe_open(model, framework=framework)
        return touch(convert(file.get_tensor(key)) for key in file.keys())  # noqa: SIM118 - it is no mapping

    first: dict[str, Callable[[], float]] = {
        "daxfs numpy": lambda: timed(lambda: with_daxfs(np.asarray)),
        "safetensors numpy": lambda: timed(lambda: with_safetensors("numpy")),
    }
    touched: dict[str, Callable[[], float]] = {
        "daxfs numpy, touched": lambda: timed(lambda: all_with_daxfs(np.asarray)),
        "safetensors numpy, touched": lambda: timed(lambda: all_with_safetensors("numpy", np.asarray)),
    }
    if importlib.util.find_spec("torch"):
        import torch  # noqa: PLC0415

        def as_bytes(one: torch.Tensor) -> np.ndarray:
            return one.view(torch.uint8).numpy()

        def view_bytes(one: daxfs.Tensor) -> np.ndarray:
            return as_bytes(torch.from_dlpack(one))

        first |= {
            "daxfs torch": lambda: timed(lambda: with_daxfs(torch.from_dlpack)),
            "safetensors torch": lambda: timed(lambda: with_safetensors("pt")),
        }
        touched |= {
            "daxfs torch, touched": lambda: timed(lambda: all_with_daxfs(view_bytes)),
            "safetensors torch, touched": lambda: timed(lambda: all_with_safetensors("pt", as_bytes)),
        }
    # Not in turns with each other: what comes after all has been touched finds the processor's caches full of that.
    samples = interleave(first, rounds, seconds=seconds / 2, warm_up=True)
    samples |= interleave(touched, rounds, seconds=seconds / 2, warm_up=True)
    print(json.dumps({"seconds": samples}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
