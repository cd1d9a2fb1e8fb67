"""An image in a GPU's memory: copying it there, and mapping a copy that is there already.

gpu MODEL.safetensors ROUNDS, with the image in $DAXFS_IMAGE.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import daxfs
from harness.rounds import interleave, timed
from workers.pinned import copier

DEVICE = "cuda:0"


def main(model: str, rounds: int) -> None:
    """Time all cases and print them."""
    name = Path(model).name
    with (
        daxfs.open() as image,
        image.to(DEVICE, writable=True) as room,
        copier(room[name].size, room[name].device_ptr) as pinned,
    ):
        cases = {
            "to": lambda: timed(lambda: image.to(DEVICE)),
            "pinned": lambda: timed(pinned),
        }
        if importlib.util.find_spec("torch"):
            import safetensors.torch  # noqa: PLC0415 - torch takes seconds to import, and is not needed

            cases["torch"] = lambda: timed(lambda: safetensors.torch.load_file(model, device=DEVICE))
        seconds = interleave(cases, rounds, warm_up=True)
        # Kept by its descriptor alone, as a holder keeps it.
        with image.to(DEVICE) as gpu:
            handle = gpu.share()
        attach = {"attach": lambda: timed(lambda: image.attach(DEVICE, handle))}
        seconds |= interleave(attach, max(rounds, 20), warm_up=True)
        print(json.dumps({"seconds": seconds, "name": daxfs.devices()[0], "bytes": image.size}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
