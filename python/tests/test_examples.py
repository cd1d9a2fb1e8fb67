"""The scripts in examples/python, run as a user runs them, on an image that is packed here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import daxfs

ml_dtypes = pytest.importorskip("ml_dtypes")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)
BIAS = np.array([0.5, -2.0, 3.0], dtype=ml_dtypes.bfloat16)
NBYTES = WEIGHT.nbytes + BIAS.nbytes


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with one safetensors file of two tensors."""
    folder = tmp_path_factory.mktemp("model")
    safetensors_numpy.save_file({"bias": BIAS, "weight": WEIGHT}, folder / "model.safetensors")
    packed = tmp_path_factory.mktemp("image") / "model.daxfs"
    daxfs.pack(folder, packed)
    return packed


def run(script: str, *arguments: str | Path, pass_fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A script's outcome; a hang is a failure."""
    command = [sys.executable, EXAMPLES / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, pass_fds=pass_fds)


def output(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines that a script printed; it must have succeeded, without a word on standard error."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_open_tensors(image: Path) -> None:
    assert output(run("open_tensors.py", image)) == [
        "bias  bfloat16  [3]  mean 0.5",
        "weight  float32  [3, 4]  mean 5.5",
        f"2 tensors, {NBYTES} bytes, 0 copies",
    ]


def test_open_tensors_of_an_inherited_descriptor(image: Path) -> None:
    fd = os.open(image, os.O_RDONLY)
    try:
        lines = output(run("open_tensors.py", f"fd:{fd}", pass_fds=(fd,)))
    finally:
        os.close(fd)
    assert lines[-1] == f"2 tensors, {NBYTES} bytes, 0 copies"


def test_share_fd(image: Path) -> None:
    sent, got = output(run("share_fd.py", image))
    assert sent.endswith(f" sent {image}")
    assert got.endswith(f" got 2 tensors, {NBYTES} bytes, over the socket")
    assert sent.split()[:2] != got.split()[:2], "both lines come from one process"


def test_share_fd_tells_when_the_receiver_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken.daxfs"
    broken.write_bytes(bytes(8192))
    done = run("share_fd.py", broken)
    assert done.returncode != 0
    assert "daxfs" in done.stderr


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_dlpack(image: Path, library: str) -> None:
    done = run(f"{library}_dlpack.py", image)
    if importlib.util.find_spec(library) is None:
        assert done.returncode != 0
        assert f"pip install {library}" in done.stderr
        pytest.skip(f"{library} is not installed; the script says so")
    lines = output(done)
    assert [line.split("  sum ")[1] for line in lines[:2]] == ["1.5", "66"]
    assert lines[2] == "2 tensors, 0 copies"


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_usage_without_arguments(script: str) -> None:
    library = script.removesuffix("_dlpack.py")
    if library != script and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    done = run(script)
    assert done.returncode == 1
    assert f"Usage: {script} IMAGE" in done.stderr
