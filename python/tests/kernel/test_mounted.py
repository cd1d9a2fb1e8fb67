"""Images that the kernel's own DAXFS has mounted, opened from Python by the path of the mount.

The file system is a module that few machines have; with ``DAXFS_REQUIRE_MODULE=1``, as in `make test-kernel` with
``DAXFS_MODULE``, a missing one is a failure, elsewhere the tests are skipped and say why.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from model import check

import daxfs


@pytest.fixture(scope="session", autouse=True)
def file_system() -> None:
    """Skip without the file system, or fail where it has to be."""
    known = Path("/proc/filesystems").read_text().split()
    if "daxfs" in known:
        return
    if os.environ.get("DAXFS_REQUIRE_MODULE"):
        pytest.fail("the kernel's module daxfs is not loaded")
    pytest.skip("the kernel's module daxfs is not loaded")


def mount(target: str, folder: Path, point: Path) -> None:
    """Pack a folder and mount the image."""
    with daxfs.pack(folder, into=target) as packed, daxfs.open(packed) as image:
        image.mount(point)


def unmount(point: Path) -> None:
    """Take the mount away, also while its files are open."""
    subprocess.run(["umount", "--lazy", point], check=True)


@pytest.mark.parametrize(("target", "exporter"), [("udmabuf", "udmabuf"), ("heap:system", "system")])
def test_mount_is_opened_by_its_path(target: str, exporter: str, folder: Path, tmp_path: Path) -> None:
    mount(target, folder, tmp_path)
    try:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()
        with daxfs.open(tmp_path) as image:
            assert (image.kind, image.exporter, image.provenance) == ("dma-buf", exporter, "shared")
            check(image, folder)
            assert image.is_current()
    finally:
        unmount(tmp_path)


def test_image_stays_when_the_mount_goes(folder: Path, tmp_path: Path) -> None:
    mount("heap:system", folder, tmp_path)
    with daxfs.open(str(tmp_path)) as image:
        unmount(tmp_path)
        check(image, folder)
        assert not image.is_current()
        with pytest.raises(daxfs.SourceError, match="it is a directory"):
            image.refresh()
        mount("heap:system", folder, tmp_path)
        try:
            assert not image.is_current()
            new = image.refresh()
            assert new is not None
            with new:
                assert new.is_current()
                check(new, folder)
        finally:
            unmount(tmp_path)
