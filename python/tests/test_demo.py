"""What the demo measures: memory of the image's doing, whatever the libraries need for themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import daxfs

from support import Spec, write_safetensors

pytest.importorskip("numpy")
pytest.importorskip("ml_dtypes")

DEMO = Path(__file__).parents[2] / "examples" / "demo"
BALLAST = 32 << 20

# A version of ml_dtypes that needs much memory: the real one, and a ballast beside it.
HEAVY = f"""
import importlib, sys
sys.path.remove({{folder!r}})
del sys.modules["ml_dtypes"]
sys.ballast = b"x" * {BALLAST}
importlib.import_module("ml_dtypes")
"""

# What reader.py does until it holds every tensor; something is put in on the way.
READ = """
import sys
import numpy as np, daxfs, reader
reader.warm_up()
before = reader.measure(int(sys.argv[1]))
with daxfs.open() as image:
    arrays = {name: np.asarray(tensor) for name, tensor in image.tensors().items()}
    %s
    reader.checksum(arrays)
    after = reader.measure(int(sys.argv[1]))
from checks import private
report = {"usage": {"before": before, "after": after}}
print(private(report, "after") - private(report, "before"), after["image"]["anonymous"], hasattr(sys, "ballast"))
"""


def growth(tmp_path: Path, extra: str = "pass") -> int:
    """Bytes of private memory that a reader of a bf16 and fp8 model of 16 MiB measures."""
    model, packed, heavy = tmp_path / "model", tmp_path / "model.daxfs", tmp_path / "heavy"
    model.mkdir()
    tensors = {"a": Spec.filled("BF16", (1 << 11, 1 << 11)), "b": Spec.filled("F8_E4M3", (1 << 12, 1 << 11))}
    write_safetensors(model / "model.safetensors", tensors)
    daxfs.pack(model, packed)
    (heavy / "ml_dtypes").mkdir(parents=True)
    (heavy / "ml_dtypes" / "__init__.py").write_text(HEAVY.format(folder=str(heavy)))
    fd = os.open(packed, os.O_RDONLY)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ % extra, str(fd)],
            env={**os.environ, "DAXFS_IMAGE": f"fd:{fd}", "PYTHONPATH": os.pathsep.join([str(heavy), str(DEMO)])},
            pass_fds=[fd],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(fd)
    assert (done.returncode, done.stderr) == (0, "")
    private, copied, ballast = done.stdout.split()
    assert (copied, ballast) == ("0", "True")
    return int(private)


def test_a_large_library_is_not_memory_of_the_tensors(tmp_path: Path) -> None:
    assert growth(tmp_path) < 1 << 20


def test_a_copy_is(tmp_path: Path) -> None:
    # Of 8 MiB; the kernel may take other pages of the process away meanwhile.
    assert growth(tmp_path, "arrays['a'] = arrays['a'].copy()") > 7 << 20
