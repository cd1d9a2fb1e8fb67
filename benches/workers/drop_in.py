"""daxfs.safetensors beside safetensors, by the same calls: the first tensor, all of them, and a part of each.

drop_in MODEL.safetensors IMAGE TENSOR SECONDS ROUNDS
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401 - both sides need it for bf16; its import is not to be timed
from safetensors import safe_open

from daxfs import safetensors as ours
from harness.rounds import interleave, timed

if TYPE_CHECKING:
    from collections.abc import Callable


def main(model: str, image: str, tensor: str, seconds: float, rounds: int) -> None:
    """Time all cases and print them."""
    sides: dict[str, tuple[Any, str]] = {
        "daxfs": (ours.safe_open, f"{image}!/{Path(model).name}"),
        "safetensors": (safe_open, model),
    }

    def first(side: str, framework: str) -> object:
        opened, name = sides[side]
        return opened(name, framework=framework).get_tensor(tensor)

    def everything(side: str, framework: str) -> object:
        opened, name = sides[side]
        return opened(name, framework=framework).get_tensors()

    def parts(side: str, framework: str) -> object:
        opened, name = sides[side]
        file = opened(name, framework=framework)
        return [file.get_slice(key)[:, :32] for key in file.keys()]  # noqa: SIM118 - it is no mapping

    firsts: dict[str, Callable[[], float]] = {}
    others: dict[str, Callable[[], float]] = {}
    frameworks = ["numpy", *(["torch"] if importlib.util.find_spec("torch") else [])]
    for framework in frameworks:
        # safetensors' get_tensors() has no bf16 for numpy: it looks the type up by another name.
        calls = {"first": first, "parts": parts} if framework == "numpy" else {"first": first, "all": everything}
        for what, call in calls.items():
            cases = firsts if what == "first" else others
            for side in sides:
                cases[f"{side} {framework}, {what}"] = lambda c=call, s=side, f=framework: timed(lambda: c(s, f))
    # Not in turns with each other: what comes after all has been touched finds the processor's caches full of that.
    samples = interleave(firsts, rounds, seconds=seconds / 2, warm_up=True)
    samples |= interleave(others, rounds, seconds=seconds / 2, warm_up=True)
    print(json.dumps({"seconds": samples}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
