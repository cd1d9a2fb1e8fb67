"""The CUDA driver without daxfs: what copies and kernels can do at best on this GPU."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PIECE = 64 << 20
NON_BLOCKING = 1
GATHER = Path(__file__).resolve().parents[2] / "examples/rust/05-cuda-gather/gather.ptx"
QUAD = 16
THREADS, MOST_BLOCKS = 128, 1 << 16


class Driver:
    """The first GPU's primary context, current in this thread, and a stream."""

    def __init__(self) -> None:
        """Load the driver."""
        self._library = ctypes.CDLL("libcuda.so.1")
        self._device, self.stream = ctypes.c_int(), ctypes.c_void_p()
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(self._device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self.call("cuCtxPushCurrent_v2", context)
        self.call("cuStreamCreate", ctypes.byref(self.stream), NON_BLOCKING)

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver, which must succeed."""
        code = getattr(self._library, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: {code}")

    def wait(self) -> None:
        """Wait for all that is in the stream."""
        self.call("cuStreamSynchronize", self.stream)

    def close(self) -> None:
        """Give everything back."""
        self.call("cuStreamDestroy_v2", self.stream)
        self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        self.call("cuDevicePrimaryCtxRelease_v2", self._device)

    @contextmanager
    def memory(self, count: int) -> Iterator[int]:
        """Allocate memory of the device."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(count))
        try:
            yield address.value
        finally:
            self.call("cuMemFree_v2", address)


@contextmanager
def driver() -> Iterator[Driver]:
    """Use the driver for a while."""
    opened = Driver()
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def copier(cuda: Driver, count: int, target: int) -> Iterator[Callable[[], None]]:
    """Give a function that copies `count` bytes to an address of the GPU, which has them, from a pinned piece."""
    pinned = ctypes.c_void_p()
    piece = min(PIECE, count)
    cuda.call("cuMemHostAlloc", ctypes.byref(pinned), ctypes.c_size_t(piece), 0)

    def copy() -> None:
        for at in range(0, count, piece):
            size = ctypes.c_size_t(min(piece, count - at))
            cuda.call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(target + at), pinned, size, cuda.stream)
        cuda.wait()

    try:
        yield copy
    finally:
        cuda.call("cuMemFreeHost", pinned)


@contextmanager
def moves(
    cuda: Driver, tables: dict[str, int], rows: Sequence[int], row: int, height: int
) -> Iterator[dict[str, Callable[[], None]]]:
    """Give functions that move the same number of bytes: one copies in the device, the others gather rows.

    tables: names and addresses, each of `height` rows of `row` bytes, a multiple of 16. The kernel is that of the
    example 05-cuda-gather.
    """
    module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
    cuda.call("cuModuleLoadData", ctypes.byref(module), GATHER.read_bytes() + b"\0")
    cuda.call("cuModuleGetFunction", ctypes.byref(kernel), module, b"example_gather")
    numbers = (ctypes.c_uint32 * len(rows))(*rows)
    count = len(rows) * row
    with cuda.memory(ctypes.sizeof(numbers)) as indices, cuda.memory(count) as source, cuda.memory(count) as out:
        size = ctypes.c_size_t(ctypes.sizeof(numbers))
        cuda.call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(indices), numbers, size, cuda.stream)
        cuda.wait()

        def copy() -> None:
            to, begin = ctypes.c_uint64(out), ctypes.c_uint64(source)
            cuda.call("cuMemcpyDtoDAsync_v2", to, begin, ctypes.c_size_t(count), cuda.stream)
            cuda.wait()

        def gather(table: int) -> None:
            values = (
                *(ctypes.c_uint64(table), ctypes.c_uint32(height), ctypes.c_uint32(row // QUAD)),
                *(ctypes.c_uint64(indices), ctypes.c_uint32(len(rows)), ctypes.c_uint64(out)),
            )
            parameters = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            shape = (min(len(rows), MOST_BLOCKS), 1, 1, THREADS, 1, 1)
            cuda.call("cuLaunchKernel", kernel, *shape, 0, cuda.stream, parameters, None)
            cuda.wait()

        gathers = {name: lambda address=address: gather(address) for name, address in tables.items()}
        yield {"copy": copy, **gathers}
    cuda.call("cuModuleUnload", module)
