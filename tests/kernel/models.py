"""Small models to pack: folders of known bytes, and what a reader must find in them."""

from __future__ import annotations

import json
import random
import shutil
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vm import busybox

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Model:
    """A folder and the tensors in it."""

    folder: Path
    # Data type, shape and bytes by name.
    tensors: dict[str, tuple[str, list[int], bytes]]


def make_model(folder: Path, seed: int, rows: int) -> Model:
    """A model in two shards with files and a program around them, 8 KiB a row; its sizes depend on `rows` alone."""
    source = random.Random(seed)  # noqa: S311 (the same bytes in every run)
    tensors = {}
    for name, dtype, shape, width in (
        ("embed", "BF16", [rows, 2048], 2),
        ("norm", "F32", [257], 4),
        ("proj", "F8_E4M3", [rows, 3000], 1),
        ("scale", "F32", [], 4),
    ):
        count = width
        for extent in shape:
            count *= extent
        tensors[name] = (dtype, shape, source.randbytes(count))
    folder.mkdir()
    parts = {"model-1.safetensors": ["embed", "norm"], "model-2.safetensors": ["proj", "scale"]}
    for file, names in parts.items():
        (folder / file).write_bytes(shard({name: tensors[name] for name in names}))
    weights = {name: file for file, names in parts.items() for name in names}
    index = {"metadata": {}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"seed": f"{seed:08}"}))
    (folder / "vocabulary").mkdir()
    for part in range(20):
        (folder / f"vocabulary/part-{part}").write_bytes(source.randbytes(1 + 997 * part))
    (folder / "vocabulary/empty").write_bytes(b"")
    (folder / "vocabulary/first").symlink_to("part-0")
    (folder / "bin").mkdir()
    shutil.copy2(busybox(), folder / "bin/busybox")
    return Model(folder, tensors)


def shard(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A safetensors file."""
    header = {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())
