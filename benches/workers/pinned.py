"""The most that the link to a GPU takes: copies from pinned memory, by the driver's own functions and nothing else."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIECE = 64 << 20
NON_BLOCKING = 1


def call(driver: ctypes.CDLL, name: str, *arguments: object) -> None:
    """Call a function of the driver, which must succeed."""
    code = getattr(driver, name)(*arguments)
    if code:
        raise RuntimeError(f"{name}: {code}")


@contextmanager
def copier(count: int, target: int) -> Iterator[Callable[[], None]]:
    """Give a function that copies `count` bytes to an address of the first GPU, which has them, from a pinned piece."""
    driver = ctypes.CDLL("libcuda.so.1")
    device, context, previous = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    call(driver, "cuInit", 0)
    call(driver, "cuDeviceGet", ctypes.byref(device), 0)
    call(driver, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call(driver, "cuCtxPushCurrent_v2", context)
    stream, pinned = ctypes.c_void_p(), ctypes.c_void_p()
    piece = min(PIECE, count)
    call(driver, "cuStreamCreate", ctypes.byref(stream), NON_BLOCKING)
    call(driver, "cuMemHostAlloc", ctypes.byref(pinned), ctypes.c_size_t(piece), 0)

    def copy() -> None:
        for at in range(0, count, piece):
            size = ctypes.c_size_t(min(piece, count - at))
            call(driver, "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(target + at), pinned, size, stream)
        call(driver, "cuStreamSynchronize", stream)

    try:
        yield copy
    finally:
        call(driver, "cuMemFreeHost", pinned)
        call(driver, "cuStreamDestroy_v2", stream)
        call(driver, "cuCtxPopCurrent_v2", ctypes.byref(previous))
        call(driver, "cuDevicePrimaryCtxRelease_v2", device)
