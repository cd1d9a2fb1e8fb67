"""Images of a holder that really runs: attached, expected, swapped, and outlived."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daxfs

from support import Spec, write_safetensors

DAXFS = Path(sysconfig.get_path("scripts")) / "daxfs"

pytestmark = pytest.mark.skipif(not DAXFS.exists(), reason="the package's scripts are not installed")


class Holder:
    """A running `daxfs serve`."""

    def __init__(self, socket: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.socket = socket
        command = [DAXFS, "serve", "--socket", socket, "--log", "json", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if '"serving"' in line:
                return
        raise AssertionError(self.process.wait())

    def daxfs(self, *command: str | Path) -> str:
        command = (DAXFS, *command, "--socket", self.socket)
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def end(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    holder = Holder(tmp_path / "s.sock")
    yield holder
    holder.end()


def weights(root: Path, seed: int) -> Path:
    """A directory with one tensor, other bytes for each seed."""
    root.mkdir()
    write_safetensors(root / "model.safetensors", {"w": Spec.filled("F32", (8, 8), seed)})
    return root


def array(image: daxfs.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image.tensors()["w"])


def test_open_by_name(holder: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder.daxfs("load", "llama", weights(tmp_path / "one", 1))
    expected = np.frombuffer(Spec.filled("F32", (8, 8), 1).data, np.float32).reshape(8, 8)
    with daxfs.open(f"daxfs+unix://{holder.socket}/llama") as image:
        assert image.provenance == "sealed"
        assert array(image).tobytes() == expected.tobytes()
    monkeypatch.setenv("DAXFS_SOCKET", str(holder.socket))
    with daxfs.open("daxfs://llama") as image:
        kept = array(image)
    holder.end()
    assert kept.tobytes() == expected.tobytes(), "arrays outlive the image and the holder"
    with pytest.raises(ConnectionError):
        daxfs.open("daxfs://llama")


def test_expect(holder: Holder, tmp_path: Path) -> None:
    address = f"daxfs+unix://{holder.socket}/llama"
    holder.daxfs("load", "llama", weights(tmp_path / "one", 1))
    with daxfs.open(address) as image:
        content = image.content_hash
    assert content is not None
    daxfs.open(address, expect=content).close()
    daxfs.open(address, expect=f"blake3:{content}").close()
    with pytest.raises(daxfs.FormatError, match="other content"):
        daxfs.open(address, expect="blake3:" + "0" * 64)
    holder.daxfs("swap", "llama", weights(tmp_path / "two", 2))
    with pytest.raises(daxfs.FormatError, match="other content"):
        daxfs.open(address, expect=content)


def test_what_the_system_refuses_has_its_number(holder: Holder) -> None:
    address = f"daxfs+unix://{holder.socket}/llama"
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError) as denied:
                daxfs.open(address)
        finally:
            os.seteuid(0)
        assert denied.value.errno == errno.EACCES
    files = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                files.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files") as exhausted:
            daxfs.open(address)
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert exhausted.value.errno == errno.EMFILE
    assert not isinstance(exhausted.value, ConnectionError)


def test_is_current(holder: Holder, tmp_path: Path) -> None:
    address = f"daxfs+unix://{holder.socket}/llama"
    holder.daxfs("load", "llama", weights(tmp_path / "one", 1))
    old = daxfs.open(address)
    before = array(old).tobytes()
    assert old.is_current()
    holder.daxfs("swap", "llama", weights(tmp_path / "two", 2))
    with daxfs.open(address) as new:
        assert (old.is_current(), new.is_current()) == (False, True)
        assert array(old).tobytes() == before != array(new).tobytes()
        holder.daxfs("drop", "llama")
        assert not new.is_current()
        holder.end()
        with pytest.raises(ConnectionError):
            new.is_current()
    with pytest.raises(ValueError, match="closed"):
        new.is_current()
    old.close()


def test_is_current_without_a_holder(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.daxfs"
    daxfs.pack(tree, path)
    with daxfs.open(path) as image, daxfs.open(image) as by_descriptor:
        assert image.is_current()
        daxfs.pack(tree, path)
        assert not image.is_current(), "another file has its name"
        assert by_descriptor.is_current(), "it has no name"


def test_pickling(holder: Holder, tmp_path: Path) -> None:
    holder.daxfs("load", "m", weights(tmp_path / "one", 1))
    with daxfs.open(f"daxfs+unix://{holder.socket}/m") as image:
        data = pickle.dumps([image, image.tensors()["w"]])
        again, tensor = pickle.loads(data)  # noqa: S301
        assert tensor.raw == image.tensors()["w"].raw
        assert again.is_current()
        holder.daxfs("swap", "m", weights(tmp_path / "two", 2))
        assert not again.is_current()
        with pytest.raises(daxfs.DaxfsError, match="another image"):
            pickle.loads(data)  # noqa: S301
