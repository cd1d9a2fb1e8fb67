"""The model of the kernel tests, and the comparison of an image with it.

As a program it is the second process of a test: it opens the image that it inherited, compares it with the
folder that its argument names, and prints who exported the memory.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

import daxfs

if TYPE_CHECKING:
    import numpy.typing as npt


def weights() -> dict[str, npt.NDArray[np.generic]]:
    """Return the tensors of the model, the same ones in every process."""
    values = np.sin(np.arange(20_000, dtype=np.float32))
    return {
        "bf16": values[:6000].astype(ml_dtypes.bfloat16).reshape(60, 100),
        "f32": values.reshape(200, 100),
        "fp8": values[:4096].astype(ml_dtypes.float8_e4m3fn).reshape(64, 64),
        "scalar": np.array(3.5, dtype=np.float16),
    }


def check(image: daxfs.Image, folder: Path) -> None:
    """Compare every byte of every file and every value of every tensor."""
    on_disk = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert {name for name in image if not name.startswith(".daxfs")} == set(on_disk)
    for name, path in on_disk.items():
        assert image[name].original().read_bytes() == path.read_bytes()
        assert bytes(memoryview(image[name])) == image[name].read_bytes()
    tensors = image.tensors()
    expected = weights()
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        seen = np.asarray(tensors[name])
        assert (seen.dtype, seen.shape) == (value.dtype, value.shape)
        assert seen.tobytes() == value.tobytes()
        assert not seen.flags.writeable
        assert not seen.flags.owndata


if __name__ == "__main__":
    with daxfs.open() as inherited:
        check(inherited, Path(sys.argv[1]))
        print(inherited.exporter)
