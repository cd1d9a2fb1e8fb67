"""safetensors' own tests, out of the source distribution of the locked version, over files in images."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("jax")
pytest.importorskip("safetensors")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VERSION = importlib.metadata.version("safetensors")

# What of them loads files, and how many pass at least. The others are for frameworks that are not installed.
TESTS = {
    "test_simple.py": 16,
    "test_handle.py": 2,
    "test_pt_comparison.py": 13,
    "test_pt_model.py": 11,
    "test_pread_backend.py": 10,
    "test_multithreaded.py": 2,
    "test_threadable.py": 1,
}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests, from the distribution that the lock's hashes name; fetched once on a machine."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import cache
    finally:
        sys.path.pop(0)
    lock = (ROOT / "scripts/requirements.txt").read_text()
    pin = re.search(rf"^safetensors=={re.escape(VERSION)}( ;[^\\]*)? \\\n((?:    --hash=\S+(?: \\)?\n)+)", lock, re.M)
    if pin is None:
        pytest.skip(f"safetensors {VERSION} is not the one that is locked")
    hashes = " ".join(pin[2].replace("\\", " ").split())

    def fetch(folder: Path) -> None:
        wanted = folder / "wanted.txt"
        wanted.write_text(f"safetensors=={VERSION} {hashes}\n")
        # maturin, which tells pip of what is in the distribution, is installed.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary=:all:", "--no-build-isolation", "--require-hashes", "-r", wanted, "-d", folder]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(command, check=True, env={**os.environ, "PATH": path}, timeout=300)

    try:
        folder = cache.made("sources", "safetensors", [hashes.encode()], fetch)
    except (subprocess.SubprocessError, OSError) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"the source distribution cannot be fetched: {error}")
    top = tmp_path_factory.mktemp("safetensors")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(top, filter="data")
    (tests,) = top.glob("*/bindings/python/tests")
    # The name under which they write their files.
    (tests / "tests/data").mkdir(parents=True)
    return tests


@pytest.mark.skipif(sys.version_info < (3, 10), reason="the version for this Python is another one")
def test_their_tests_pass_over_images(source: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "over_images", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, check=False, cwd=source, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, least in TESTS.items():
        passed = len(re.findall(rf"^PASSED {name}::", done.stdout, re.MULTILINE))
        assert passed >= least, f"{name}: {passed} passed\n{done.stdout}"
    (count,) = re.findall(r"files loaded from images: (\d+)", done.stdout)
    assert int(count) > 100, done.stdout
