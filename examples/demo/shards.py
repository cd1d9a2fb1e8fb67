"""Make a sharded, quantised checkpoint of the model: bf16 and fp8 matrices in three safetensors files.

The layout is what large models use: `model-0000N-of-00003.safetensors`, and a `model.safetensors.index.json`
that says which file holds which tensor. A matrix quantised to fp8 has an F32 scalar `NAME_scale` beside it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

SHARDS = 3
FP8_MAX = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)  # 448
DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}
UNUSED = ("embeddings.position_ids", "pooler.")  # the encoder computes positions and pools by the mean


def quantise(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """One tensor as it is stored: feed-forward matrices in fp8, other matrices in bf16, vectors in F32."""
    if array.ndim < 2:
        return {name: array}
    if name.endswith((".intermediate.dense.weight", ".output.dense.weight")) and ".attention." not in name:
        scale = np.float32(np.abs(array).max() / FP8_MAX)
        return {name: (array / scale).astype(ml_dtypes.float8_e4m3fn), f"{name}_scale": np.array(scale)}
    return {name: array.astype(ml_dtypes.bfloat16)}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A safetensors file: the header's length (u64), the header (JSON, padded to 8 bytes), the tensors."""
    header: dict[str, Any] = {}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        dtype = DTYPE_NAMES[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(array.tobytes())


def shard_of(name: str, layers: int) -> int:
    """The embeddings and the first layers go to the first file, the last layers to the last."""
    if not name.startswith("encoder.layer."):
        return 0
    return int(name.split(".")[2]) * SHARDS // layers


def make_checkpoint(tensors: Mapping[str, Any], layers: int, folder: Path) -> None:
    """Quantise the tensors of a model with so many layers into `SHARDS` files and an index in `folder`."""
    shards: list[dict[str, np.ndarray]] = [{} for _ in range(SHARDS)]
    for name in tensors:
        if not name.startswith(UNUSED):
            shards[shard_of(name, layers)].update(quantise(name, np.asarray(tensors[name])))
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        # Widest elements first, as the safetensors library orders them, so that every element is aligned.
        ordered = dict(sorted(shard.items(), key=lambda item: (-item[1].itemsize, item[0])))
        write_safetensors(folder / file_name, ordered)
        weight_map.update(dict.fromkeys(ordered, file_name))
    total = sum(array.nbytes for shard in shards for array in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
