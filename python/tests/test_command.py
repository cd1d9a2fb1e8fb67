"""The commands of the package: the Rust programs behind Python entry points."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import daxfs

from support import is_writing_into

SCRIPTS = Path(sysconfig.get_path("scripts"))
DAXFS = SCRIPTS / "daxfs"
PACK = SCRIPTS / "daxfs-pack"

pytestmark = pytest.mark.skipif(not PACK.exists(), reason="the package's scripts are not installed")


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)  # noqa: PLW1510


def test_version() -> None:
    assert run(DAXFS, "--version").stdout == f"daxfs {daxfs.__version__}\n"
    assert run(PACK, "--version").stdout == f"daxfs-pack {daxfs.__version__}\n"


def test_pack_and_list(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "tree.daxfs"
    packed = run(PACK, tree, "-o", image, "--json", check=True)
    assert json.loads(packed.stdout)["image_bytes"] == image.stat().st_size
    listed = run(DAXFS, "ls", image, check=True)
    assert "config.json" in listed.stdout.splitlines()
    assert run(DAXFS, "cat", image, "config.json").stdout == '{"hidden_size": 8}'


def test_exit_status(path: Path, tmp_path: Path) -> None:
    for command in ([DAXFS, "ls", tmp_path / "none"], [DAXFS, "nonsense"], [PACK, tmp_path / "none"]):
        failed = run(*command)
        assert failed.returncode == 2
        assert failed.stderr
        assert "Traceback" not in failed.stderr


def test_a_command_on_the_image(tree: Path) -> None:
    code = "import daxfs; image = daxfs.open(); print(image.kind, image['config.json'].read_bytes().decode())"
    child = run(PACK, tree, "--into", "memfd", "--quiet", "--", sys.executable, "-c", code, check=True)
    assert child.stdout == 'memfd {"hidden_size": 8}\n'


def test_a_pipe_that_closes_early(path: Path) -> None:
    with subprocess.Popen([DAXFS, "cat", path, "sub/large.bin"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert len(child.stdout.read(10)) == 10
        child.stdout.close()
        assert child.wait() == 0


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(8 << 30)
    target = tmp_path / "target"
    target.mkdir()
    with subprocess.Popen([PACK, tmp_path / "huge", "-o", target / "x", "--quiet"]) as child:
        while not is_writing_into(child.pid, target):
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        assert child.wait() in (-signal.SIGINT, 128 + signal.SIGINT)
