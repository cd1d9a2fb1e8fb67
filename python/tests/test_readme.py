"""Runs the README's Python examples as they stand there."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import daxfs

README = Path(__file__).parents[2] / "README.md"


def safetensors(name: str, shape: list[int], data: bytes) -> bytes:
    entry = {"dtype": "BF16", "shape": shape, "data_offsets": [0, len(data)]}
    header = json.dumps({name: entry}).encode()
    return struct.pack("<Q", len(header)) + header + data


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the examples are run in, which has the image that they open."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes(safetensors("lm_head.weight", [2, 2], bytes(8)))
    monkeypatch.chdir(tmp_path)
    daxfs.pack("weights", "llama.daxfs")
    return tmp_path


def blocks(mark: str) -> list[str]:
    found = re.findall(rf"```{mark}\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert found, "the README has such an example"
    return found


def test_python_example(folder: Path) -> None:
    pytest.importorskip("ml_dtypes")
    for block in blocks("python"):
        names: dict[str, object] = {}
        exec(compile(block, str(README), "exec"), names)  # noqa: S102
        assert "array" in names or "holder" in names
        if "array" in names:
            assert names["array"].shape == (2, 2)  # type: ignore[attr-defined]
            assert len(names["view"]) == names["weights"].size  # type: ignore[arg-type, attr-defined]


def test_gpu_example(folder: Path, fake_cuda: Path) -> None:
    (block,) = blocks("python gpu")
    # A process of its own, which finds the simulated driver.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fake_cuda)}
    done = subprocess.run([sys.executable, "-c", block], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.startswith("cuda:0 bfloat16 (2, 2) 0x")
