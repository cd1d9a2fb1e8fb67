"""Images that the kernel's own DAXFS has mounted, opened from Python by the path of the mount.

The file system is a module that few machines have; with ``DAXFS_REQUIRE_MODULE=1``, as in `make test-kernel` with
``DAXFS_MODULE``, a missing one is a failure, elsewhere the tests are skipped and say why.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from model import check

import daxfs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def file_system() -> None:
    """Skip without the file system, or fail where it has to be."""
    known = Path("/proc/filesystems").read_text().split()
    if "daxfs" in known:
        return
    if os.environ.get("DAXFS_REQUIRE_MODULE"):
        pytest.fail("the kernel's module daxfs is not loaded")
    pytest.skip("the kernel's module daxfs is not loaded")


@contextmanager
def mounted(target: str, folder: Path, point: Path) -> Iterator[None]:
    """Pack a folder and have the image mounted for a while."""
    with daxfs.pack(folder, into=target, exact=True) as packed, daxfs.open(packed) as image:
        image.mount(point)
    try:
        yield
    finally:
        # Also while files are open.
        subprocess.run(["umount", "--lazy", point], check=True)


@pytest.mark.parametrize(("target", "exporter"), [("udmabuf", "udmabuf"), ("heap:system", "system")])
def test_mount_is_opened_by_its_path(target: str, exporter: str, folder: Path, tmp_path: Path) -> None:
    with mounted(target, folder, tmp_path):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()
        with daxfs.open(tmp_path) as image:
            assert (image.kind, image.exporter, image.provenance) == ("dma-buf", exporter, "shared")
            check(image, folder)
            assert image.is_current()


def test_image_stays_when_the_mount_goes(folder: Path, tmp_path: Path) -> None:
    with mounted("heap:system", folder, tmp_path):
        image = daxfs.open(str(tmp_path))
    with image:
        check(image, folder)
        assert not image.is_current()
        with pytest.raises(daxfs.SourceError, match="it is a directory"):
            image.refresh()
        with mounted("heap:system", folder, tmp_path):
            assert not image.is_current()
            new = image.refresh()
            assert new is not None
            with new:
                assert new.is_current()
                check(new, folder)
        with pytest.raises(FileNotFoundError, match="none"), daxfs.pack(folder, into="udmabuf") as packed:
            daxfs.open(packed).mount(tmp_path / "none")
        with pytest.raises(daxfs.SourceError, match="neither a dma-buf nor physical"), daxfs.pack(folder) as packed:
            daxfs.open(packed).mount(bytes(tmp_path))
