"""An image in a GPU's memory: copying it there from several kinds of memory, mapping a copy, reading it by kernels.

gpu MODEL.safetensors COPY.safetensors IMAGE.daxfs ROUNDS, with the image in a memfd, too, as $DAXFS_IMAGE. The copy is
for the loaders of the peers: some read around the page cache, and only from a tmpfs then do they read memory.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import random
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import daxfs
from harness.command import run
from harness.rounds import Samples, interleave, timed
from workers.driver import copier, driver, moves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from workers.driver import Driver

DEVICE = "cuda:0"
ROW = 4096
GATHERED = 1 << 30
# The driver clears memory that was given back, in the background; who allocates at once waits for that.
REST = 0.3
GATHERED_OVER_THE_LINK = 64 << 20
ATTACHING = 10
SEED = 20260101


def loaders(model: str) -> dict[str, Callable[[], object]]:
    """Give the loaders of the peers that are installed; each makes all tensors of a file on the GPU."""
    cases: dict[str, Callable[[], object]] = {}

    def has(*names: str) -> bool:
        return all(importlib.util.find_spec(name) for name in names)

    if has("torch", "safetensors"):
        import safetensors.torch  # noqa: PLC0415 - torch takes seconds to import, and is not needed

        cases["safetensors.torch.load_file"] = lambda: safetensors.torch.load_file(model, device=DEVICE)
    if has("torch", "fastsafetensors"):
        import fastsafetensors  # noqa: PLC0415

        def fast() -> object:
            with fastsafetensors.fastsafe_open(model, device=DEVICE, nogds=True) as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping

        cases["fastsafetensors"] = fast
    if has("torch", "instanttensor"):
        import instanttensor  # noqa: PLC0415

        def instant() -> object:
            with instanttensor.safe_open(model, framework="pt", device=DEVICE) as file:
                return dict(file.tensors())

        cases["InstantTensor"] = instant
    return cases


@contextmanager
def pinnable(image: daxfs.Image) -> Iterator[daxfs.Image]:
    """Have the image in a memfd that is not sealed against writing, so that its pages can be pinned."""
    fd = os.memfd_create("daxfs-bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        done = 0
        while done < image.size:
            done += os.sendfile(fd, image.fileno(), done, image.size - done)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        with daxfs.open(fd) as copy:
            yield copy
    finally:
        os.close(fd)


def rested(action: Callable[[], object]) -> float:
    """Seconds that `action` takes when nothing was given back just before."""
    time.sleep(REST)
    return timed(action)


class Files(NamedTuple):
    """What is on disks."""

    model: str
    copy: str
    image: str


def uploads(cuda: Driver, files: Files, shared: daxfs.Image, rounds: int) -> Samples:
    """Time copies to the GPU."""
    name = Path(files.model).name
    with ExitStack() as stack:
        image = stack.enter_context(daxfs.open())
        file = stack.enter_context(daxfs.open(files.image))
        # Mapped, so its pages are pinned, and copies are fetched from there.
        stack.enter_context(shared.map(DEVICE))
        with image.to(DEVICE, writable=True) as room, copier(cuda, room[name].size, room[name].device_ptr) as pinned:
            link = interleave({"pinned": lambda: timed(pinned)}, rounds, warm_up=True)
        cases = {
            "to, sealed memfd": lambda: rested(lambda: image.to(DEVICE)),
            "to, file in the page cache": lambda: rested(lambda: file.to(DEVICE)),
            "to, registered memfd": lambda: rested(lambda: shared.to(DEVICE)),
        }
        for peer, load in loaders(files.copy).items():
            cases[peer] = lambda load=load: rested(load)
        return link | interleave(cases, rounds, warm_up=True)


def attached(image: daxfs.Image, handle: daxfs.DeviceHandle) -> float:
    """Seconds that it takes another process, which has the GPU's context already, to map a copy."""
    words = [sys.executable, "-m", "workers.attach", handle.fileno(), handle.size, handle.uuid]
    env = {"DAXFS_IMAGE": f"fd:{image.fileno()}"}
    return float(run(words, env=env, fds=[image.fileno(), handle.fileno()]).stdout)


def reads(cuda: Driver, model: str, shared: daxfs.Image, rounds: int) -> tuple[Samples, dict[str, int]]:
    """Time what reads a copy: mapping it, hashing it, gathering rows of it; and the bytes that each of them reads."""
    name = Path(model).name
    with daxfs.open() as image, image.to(DEVICE) as gpu, shared.map(DEVICE) as mapped:
        # Kept by its descriptor alone, as a holder keeps it.
        with image.to(DEVICE) as other, other.share() as handle:
            other.close()
            seconds = {"attach": [attached(image, handle) for _ in range(ATTACHING)]}
        height = gpu[name].size // ROW
        chooser = random.Random(SEED)  # noqa: S311 - not for secrets
        read = {"verify": sum(file.size for file in image.values())}
        seconds |= interleave({"verify": lambda: timed(gpu.verify)}, rounds, warm_up=True)
        for table, count, names in (
            (gpu[name].device_ptr, GATHERED, ("copy", "gather")),
            (mapped[name].device_ptr, GATHERED_OVER_THE_LINK, (None, "gather over the link")),
        ):
            rows = [chooser.randrange(height) for _ in range(min(count // ROW, height))]
            with moves(cuda, {"gather": table}, rows, ROW, height) as functions:
                cases = {
                    case: lambda function=function: timed(function)
                    for case, function in zip(names, functions.values(), strict=True)
                    if case
                }
                seconds |= interleave(cases, max(rounds, 10), warm_up=True)
            read |= dict.fromkeys(cases, len(rows) * ROW)
        return seconds, read


def main(files: Files, rounds: int) -> None:
    """Time all cases and print them."""
    with driver() as cuda, daxfs.open() as image, pinnable(image) as shared:
        seconds = uploads(cuda, files, shared, rounds)
        more, read = reads(cuda, files.model, shared, rounds)
        print(json.dumps({"seconds": seconds | more, "read": read, "name": daxfs.devices()[0], "bytes": image.size}))


if __name__ == "__main__":
    main(Files(*sys.argv[1:4]), int(sys.argv[4]))
