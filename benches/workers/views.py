"""Arrays of a whole model: views of an image against the copies that safetensors makes.

views MODEL.safetensors ROUNDS MEMORY, with the image in $DAXFS_IMAGE.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ml_dtypes  # noqa: F401 - both sides need it for bf16; its import is not to be timed
import numpy as np
import safetensors.numpy

import daxfs
from harness.rounds import interleave, timed
from workers.touch import touch


def main(model: str, rounds: int, memory: int) -> None:
    """Time all cases and print them."""
    name = Path(model).name

    def views() -> list[np.ndarray]:
        return [np.asarray(tensor) for tensor in daxfs.open()[name].values()]

    def copies() -> list[np.ndarray]:
        return list(safetensors.numpy.load_file(model).values())

    cases = {
        "daxfs": lambda: timed(views),
        "safetensors": lambda: timed(copies),
        "daxfs, touched": lambda: timed(lambda: touch(views())),
        "safetensors, touched": lambda: timed(lambda: touch(copies())),
    }
    print(json.dumps({"seconds": interleave(cases, rounds, warm_up=True, memory=memory)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
