"""Runs the Python examples of docs/ml.md as they stand there, in order, beside the image that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import daxfs

from support import Spec, write_safetensors

PAGE = Path(__file__).parents[2] / "docs/ml.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)

for package in ("torch", "transformers", "jax", "safetensors", "onnxruntime"):
    pytest.importorskip(package)


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # An example sets it.
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    Path("weights").mkdir()
    write_safetensors(Path("weights/model.safetensors"), {"lm_head.weight": Spec.filled("BF16", (16, 8))})
    daxfs.pack("weights", "llama.daxfs")
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), {"__name__": "example"})  # noqa: S102
