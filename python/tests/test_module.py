"""The face of the package: names, exceptions, version."""

from __future__ import annotations

import importlib.metadata
import inspect
from pathlib import Path

import pytest

import daxfs

CLASSES = (
    daxfs.Image,
    daxfs.Directory,
    daxfs.File,
    daxfs.Tensors,
    daxfs.Tensor,
    daxfs.DeviceImage,
    daxfs.DeviceFile,
    daxfs.DeviceTensors,
    daxfs.DeviceTensor,
    daxfs.DeviceTensorPart,
    daxfs.DeviceLookup,
    daxfs.DeviceHandle,
)


def test_names() -> None:
    for name in daxfs.__all__:
        value = getattr(daxfs, name)
        if inspect.isclass(value):
            assert (value.__module__, value.__qualname__) == ("daxfs", name)
            assert value.__doc__
    assert set(dir(daxfs)) >= set(daxfs.__all__)


def test_everything_is_documented() -> None:
    for cls in CLASSES:
        for name in dir(cls):
            if not name.startswith("_"):
                assert getattr(cls, name).__doc__, f"{cls.__name__}.{name}"
    assert daxfs.open.__doc__
    assert daxfs.pack.__doc__
    assert daxfs.devices.__doc__
    assert daxfs.install.__doc__
    assert daxfs.uninstall.__doc__
    assert daxfs.explain_faults.__doc__


def test_the_header_for_kernels_is_in_the_package() -> None:
    header = (Path(daxfs.get_include()) / "daxfs_device.h").read_text()
    assert header == (Path(__file__).parents[2] / "crates/device/include/daxfs_device.h").read_text()


def test_version() -> None:
    assert daxfs.__version__ == importlib.metadata.version("daxfs")


@pytest.mark.parametrize(
    ("exception", "bases"),
    [
        (daxfs.DaxfsError, (Exception,)),
        (daxfs.FormatError, (daxfs.DaxfsError, ValueError)),
        (daxfs.NotFoundError, (daxfs.DaxfsError, KeyError)),
        (daxfs.SourceError, (daxfs.DaxfsError, ValueError)),
        (daxfs.DeviceError, (daxfs.DaxfsError, RuntimeError)),
        (daxfs.DeviceMemoryError, (daxfs.DeviceError, MemoryError)),
        (daxfs.NotPlacedError, (daxfs.DeviceError, daxfs.NotFoundError)),
        (daxfs.CopyWarning, (UserWarning,)),
    ],
)
def test_exceptions(exception: type[Exception], bases: tuple[type, ...]) -> None:
    assert exception.__bases__ == bases
    assert str(exception("a sentence")) == "a sentence"
