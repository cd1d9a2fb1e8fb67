"""The folder that the kernel tests pack."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from model import weights

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model and what lies beside it."""
    names = {"bfloat16": "BF16", "float32": "F32", "float8_e4m3fn": "F8_E4M3", "float16": "F16"}
    root = tmp_path_factory.mktemp("model")
    header, data = {}, b""
    for name, value in weights().items():
        span = [len(data), len(data) + value.nbytes]
        header[name] = {"dtype": names[value.dtype.name], "shape": list(value.shape), "data_offsets": span}
        data += value.tobytes()
    text = str(header).replace("'", '"').encode()
    (root / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (root / "config.json").write_text('{"layers": 1}')
    (root / "sub").mkdir()
    (root / "sub/large").write_bytes(bytes(range(251)) * 9000)
    (root / "sub/empty").touch()
    return root
