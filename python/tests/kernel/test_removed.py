"""A PCI device that is removed while an image in its memory is open: every read says so.

The guest of `make test-kernel` names such a device in ``DAXFS_TEST_PCI``. Elsewhere no device is removed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import daxfs

if TYPE_CHECKING:
    from collections.abc import Callable

PACK = Path(sys.executable).with_name("daxfs-pack")


@pytest.fixture
def device() -> Path:
    """Give the device's directory in sysfs."""
    name = os.environ.get("DAXFS_TEST_PCI")
    if os.environ.get("DAXFS_REQUIRE_GUEST"):
        assert name, "DAXFS_TEST_PCI names no PCI device"
    elif not name:
        pytest.skip("DAXFS_TEST_PCI names no PCI device of a guest of these tests")
    return Path("/sys/bus/pci/devices") / str(name)


def test_every_read_of_a_removed_device_is_an_error(device: Path, folder: Path, tmp_path: Path) -> None:
    # Other tests have left an image there.
    subprocess.run([PACK, "--quiet", "--replace", "--into", device, folder], check=True)
    image = daxfs.open(device)
    file = image["sub/large"]
    assert file.read_bytes() == (folder / "sub/large").read_bytes()
    (device / "remove").write_text("1")
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs, (tmp_path / "sink").open("wb") as sink:
            doors: list[Callable[[], object]] = [
                file.read_bytes,
                lambda: file.readinto_at(0, bytearray(16)),
                lambda: file.write_to(sink),
                lambda: file.send(ours),
            ]
            for door in doors:
                with pytest.raises(daxfs.SourceError, match=r"resource2.* was removed"):
                    door()
        assert not image.is_current()
        with pytest.raises(FileNotFoundError):
            image.refresh()
    finally:
        Path("/sys/bus/pci/rescan").write_text("1")
    again = image.refresh()
    assert again is not None
    assert again["sub/large"].read_bytes() == (folder / "sub/large").read_bytes()
