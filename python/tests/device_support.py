"""What device_cases.py and its neighbours share: they run in processes of their own, with a CUDA driver.

The driver is the simulated one (tests/cuda/libcuda.c), whose device addresses are addresses of the process, or with
DAXFS_TEST_GPU=1 the machine's.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import Any, Callable, TypeVar

from test_dlpack import inside

import daxfs

REAL = os.environ.get("DAXFS_TEST_GPU") == "1"
TENSOR = "all.F32"
# Exit status of a case that cannot run.
SKIPPED = 77
Case = TypeVar("Case", bound=Callable[[Path], None])


def simulated(**settings: object) -> Callable[[Case], Case]:
    """Mark a function that needs the simulated driver, with settings for it."""

    def mark(case: Case) -> Case:
        case.settings = {f"DAXFS_FAKE_CUDA_{name}": str(value) for name, value in settings.items()}  # type: ignore[attr-defined]
        return case

    return mark


def live() -> int:
    """Count the driver's things that this process has; 0 with a real one."""
    return 0 if REAL else ctypes.CDLL("libcuda.so.1").daxfs_fake_cuda_live()


def need(is_there: bool, what: str) -> None:
    """End the process, whose test is skipped, unless a library can use a GPU."""
    if not is_there:
        print(what)
        sys.exit(SKIPPED)


def at(pointer: int, size: int) -> bytes:
    """Bytes at a device address of the simulated driver."""
    return ctypes.string_at(pointer, size) if size else b""


def lent(capsule: Any) -> Any:
    """The struct that a capsule holds, which lives as long as what is returned here."""
    managed = inside(capsule)
    managed.capsule = capsule
    return managed


def rights(pointer: int) -> str:
    """How memory is mapped: what the driver lets this process do with it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode = line.split()[:2]
        start, end = (int(number, 16) for number in span.split("-"))
        if start <= pointer < end:
            return mode[:2]
    raise AssertionError(f"nothing is mapped at {pointer:#x}")


def check_contents(gpu: daxfs.DeviceImage, image: daxfs.Image) -> None:
    """Compare all files and tensors with those of the host."""
    for path, file in image.items():
        assert gpu[path].read_bytes() == file.read_bytes(), path
        if not REAL:
            assert at(gpu[path].device_ptr, file.size) == file.read_bytes()
    for name, tensor in image.tensors().items():
        assert gpu.tensors()[name].read() == tensor.raw, name
        if not REAL:
            assert at(gpu.tensors()[name].device_ptr, tensor.nbytes) == tensor.raw


def main(names: dict[str, Any]) -> None:
    """Run the function that the command line names, with the path after it; nothing of the driver may be left then."""
    names[sys.argv[1]](Path(sys.argv[2]))
    gc.collect()
    assert live() == 0
