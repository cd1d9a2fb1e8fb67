"""Runs the README's Python example as it stands there."""

import json
import re
import struct
from pathlib import Path

import pytest

import daxfs

README = Path(__file__).parents[2] / "README.md"


def safetensors(name: str, shape: list[int], data: bytes) -> bytes:
    entry = {"dtype": "BF16", "shape": shape, "data_offsets": [0, len(data)]}
    header = json.dumps({name: entry}).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ml_dtypes")
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes(safetensors("lm_head.weight", [2, 2], bytes(8)))
    monkeypatch.chdir(tmp_path)
    daxfs.pack("weights", "llama.daxfs")

    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert blocks, "the README has a Python example"
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, str(README), "exec"), names)  # noqa: S102
        assert names["array"].shape == (2, 2)  # type: ignore[attr-defined]
        assert len(names["view"]) == names["weights"].size  # type: ignore[arg-type, attr-defined]
