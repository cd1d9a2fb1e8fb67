"""The data that is packed and read: made anew by each run, the same bytes every time."""

from __future__ import annotations

import json
import math
import os
import random
import struct
from typing import TYPE_CHECKING

from harness.machine import cool_files, warm_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POOL, PIECE = 64 << 20, 16 << 20
FILES_PER_DIRECTORY = 250
COLUMNS = 64
SEED = 20260101


class Noise:
    """Bytes without pattern: pieces of a pool of random bytes, from places chosen at random."""

    def __init__(self) -> None:
        """Make the pool."""
        self._chooser = random.Random(SEED)  # noqa: S311 - not for secrets
        self._pool = memoryview(self._chooser.randbytes(POOL))

    def below(self, bound: int) -> int:
        """Choose a number."""
        return self._chooser.randrange(bound)

    def write(self, path: Path, count: int, start: bytes = b"") -> None:
        """Write a file of `start` and `count` bytes more."""
        with path.open("wb") as file:
            file.write(start)
            while count > 0:
                length = min(PIECE, count)
                place = self.below(POOL - length)
                file.write(self._pool[place : place + length])
                count -= length


def safetensors_header(shapes: dict[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """Give the header of a file of bf16 tensors, and the length of the data behind it."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, end


def tensor_names(count: int) -> list[str]:
    """Name tensors as large models do, in the order of the layers."""
    attention = ("self_attn.q_proj", "self_attn.o_proj")
    parts = ("input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", *attention)
    return [f"model.layers.{n // len(parts)}.{parts[n % len(parts)]}.weight" for n in range(count)]


class Store:
    """Makes data in a directory; what is there and complete is used again."""

    def __init__(self, directory: Path) -> None:
        """Take the directory, which exists."""
        self.directory = directory
        self._warm: set[Path] = set()

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        path, mark = self.directory / name, self.directory / f"{name}.complete"
        if not mark.exists():
            path.mkdir(exist_ok=True)
            make(path)
            mark.touch()
            os.sync()
        warm_files(path)
        self._warm.add(path)
        return path

    def cool(self) -> None:
        """Leave the memory to others, until the data is asked for again."""
        for path in self._warm:
            cool_files(path)
        self._warm.clear()

    def weights(self, count: int, *, shards: int = 1, tensors: int = 300) -> Path:
        """Make a model of `tensors` bf16 tensors with about `count` bytes; several shards get an index."""

        def make(path: Path) -> None:
            names = tensor_names(tensors)
            rows = max(count // (2 * COLUMNS * tensors), 1)
            weight_map = {}
            noise = Noise()
            for shard in range(shards):
                own = names[shard * tensors // shards : (shard + 1) * tensors // shards]
                file = f"model-{shard + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
                header, length = safetensors_header(dict.fromkeys(own, (rows, COLUMNS)))
                noise.write(path / file, length, header)
                weight_map.update(dict.fromkeys(own, file))
            (path / "config.json").write_text('{"architectures": ["Benchmark"], "torch_dtype": "bfloat16"}\n')
            if shards > 1:
                total = {"total_size": 2 * COLUMNS * rows * tensors}
                index = json.dumps({"metadata": total, "weight_map": weight_map}, indent=2)
                (path / "model.safetensors.index.json").write_text(index)

        return self._made(f"weights-{count}-{shards}-{tensors}", make)

    def tree(self, files: int, count: int) -> Path:
        """Make a tree of `files` files with about `count` bytes; sizes from nothing to twice the mean."""

        def make(path: Path) -> None:
            noise = Noise()
            mean = count // files
            for number in range(files):
                folder = path / f"{number // FILES_PER_DIRECTORY:04}"
                if number % FILES_PER_DIRECTORY == 0:
                    folder.mkdir()
                noise.write(folder / f"file-{number:06}.bin", noise.below(2 * mean + 1))

        return self._made(f"tree-{files}-{count}", make)
