"""Copies in host memory that GPUs read in place: run by test_device.py as device_cases.py is."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from conftest import ALL_DTYPES
from device_support import REAL, TENSOR, check_contents, lent, live, main, rights, simulated
from test_dlpack import READ_ONLY

import daxfs

NO_UUID = "GPU-00000000-0000-0000-0000-000000000000"


def check(gpu: daxfs.DeviceImage, image: daxfs.Image) -> None:
    """Compare with the host's: what the GPU copies back, what its kernels hash, and what the CPU reads."""
    assert (gpu.device, gpu.resident, gpu.size) == ("cuda:0", False, image.size)
    check_contents(gpu, image)
    gpu.verify()
    for path, file in image.items():
        if file.size:
            assert ctypes.string_at(gpu[path].device_ptr, file.size) == file.read_bytes(), path


def a_copy_in_host_memory(path: Path) -> None:
    with daxfs.open(path) as image:
        for text in ("cuda-host", "cuda-host:0"):
            with image.to(text, verify=True) as gpu:
                assert gpu.copied
                assert "in host memory for cuda:0" in repr(gpu)
                check(gpu, image)
                with pytest.raises(daxfs.DeviceError, match="no dma-buf of its host memory"):
                    gpu.export("dma-buf")
        for threads, piece, direct in ((1, 4096, True), (4, 5000, True), (3, 1 << 20, False)):
            with image.to("cuda-host:0", threads=threads, piece=piece, direct=direct, register=True) as gpu:
                check(gpu, image)
        steps: list[tuple[int, int]] = []
        image.to("cuda-host:0", piece=4096, progress=lambda *step: steps.append(step)).close()
        assert steps[-1] == (image.size, image.size)
        with pytest.raises(daxfs.DeviceError, match="cancelled"):
            image.to("cuda-host:0", piece=4096, progress=lambda *_: False)
    gc.collect()
    assert live() == 0


def numpy_reads_it(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda-host:0") as gpu:
        tensor = gpu.tensors()[TENSOR]
        assert tensor.__dlpack_device__() == (3, 0)
        managed = lent(tensor.__dlpack__(max_version=(1, 1)))
        assert (managed.tensor.device_type, managed.tensor.device_id, managed.flags) == (3, 0, READ_ONLY)
        assert managed.tensor.data == tensor.device_ptr
        array = np.from_dlpack(tensor)
        assert array.ctypes.data == tensor.device_ptr, "it was copied"
        assert not array.flags.writeable
        part = np.from_dlpack(tensor[1])
        assert part.ctypes.data == tensor[1].device_ptr
        assert tensor.__cuda_array_interface__["data"] == (tensor.device_ptr, True)
        with pytest.raises(BufferError, match="consumers of DLPack 1 only"):
            tensor.__dlpack__()
        del tensor, managed, part
    # Closed, and still the array's.
    gc.collect()
    assert array.tobytes() == ALL_DTYPES[TENSOR].data
    assert live() > 0 or REAL


def written_by_the_cpu(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda-host:0", writable=True) as gpu:
        tensor = gpu.tensors()[TENSOR]
        array = np.from_dlpack(tensor)
        assert array.flags.writeable
        array[:] = 7
        assert tensor.read() == array.tobytes() != bytes(image.tensors()[TENSOR].raw)
        with pytest.raises(daxfs.DeviceError, match=r"/model\.safetensors: the copy's hash is"):
            gpu.verify()
        del array


@simulated()
def mapped_for_reading(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda-host:0") as gpu:
        assert rights(gpu.device_ptr) == "r-"
        with image.attach("cuda:0", gpu.share()) as other:
            assert rights(other.device_ptr) == "r-"


@simulated(DEVICES=2)
def shared_with_every_gpu(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda-host:1") as gpu, gpu.share() as handle:
        assert (gpu.device, handle.uuid) == ("cuda:1", NO_UUID)
        assert handle.size >= image.size
        assert repr(handle).endswith("in host memory>")
        fd, size = handle.fileno(), handle.size
        # The uuid says nothing of this memory.
        for attached in (
            image.attach("cuda:0", handle),
            image.attach("cuda:0", fd, size=size, uuid=handle.uuid),
            image.attach("cuda:0", fd, size=size, uuid=gpu.uuid),
        ):
            assert not attached.copied
            check(attached, image)
        check(image.attach("cuda:0", attached.share()), image)
        with pytest.raises(ValueError, match=str(image.size)):
            image.attach("cuda:0", fd, size=image.size - 1, uuid=handle.uuid)
        with path.open("rb") as file, pytest.raises(daxfs.DeviceError, match="cuMemImportFromShareableHandle"):
            image.attach("cuda:0", file, size=size, uuid=handle.uuid)


def wrong_devices(path: Path) -> None:
    with daxfs.open(path) as image:
        for text in ("cuda-host:", "cuda-host:x", "cuda-host:all", "cuda-hosts", "cuda:0-host", "host", "cuda-host0"):
            with pytest.raises(ValueError, match="cuda-host:N"):
                image.to(text)
        with pytest.raises(daxfs.DeviceError, match="there is no device 99"):
            image.to("cuda-host:99")
        # Both find out what they are given by themselves.
        for use in (image.map, lambda text: image.attach(text, 0, size=1, uuid=NO_UUID)):
            with pytest.raises(ValueError, match='a device is "cuda" or "cuda:N"'):
                use("cuda-host:0")


@simulated(ATTRIBUTES="141=0")
def a_driver_without_it(path: Path) -> None:
    with daxfs.open(path) as image:
        with pytest.raises(daxfs.DeviceError, match="it needs a driver that allocates memory of NUMA nodes"):
            image.to("cuda-host:0")
        image.to("cuda:0").close()
    assert live() == 0


@simulated(FAIL="cuMemCreate:1:2")
def too_little_host_memory(path: Path) -> None:
    with daxfs.open(path) as image, pytest.raises(daxfs.DeviceMemoryError, match="bytes of host memory are needed"):
        image.to("cuda-host:0")
    assert live() == 0


def what_a_rank_has(path: Path) -> None:
    plan = {"ranks": 2, "rules": [{"tensors": TENSOR, "on": 1}]}
    with daxfs.open(path) as image, image.to("cuda-host:0", plan=plan, rank=1, verify=True) as gpu:
        assert (gpu.rank, gpu.resident) == (1, False)
        assert np.from_dlpack(gpu.tensors()[TENSOR]).tobytes() == ALL_DTYPES[TENSOR].data
        with image.attach("cuda:0", gpu.share(), plan=plan, rank=1) as other:
            assert other.tensors()[TENSOR].read() == ALL_DTYPES[TENSOR].data


def give_host_memory_away(path: Path) -> None:
    """Send the memory through a socket, whose descriptor is in the environment, and wait to be killed."""
    with daxfs.open(path) as image, socket.socket(fileno=int(os.environ["PEER"])) as peer:
        handle = image.to("cuda-host:0").share()
        socket.send_fds(peer, [f"{handle.size} {handle.uuid}".encode()], [handle.fileno()])
        peer.recv(1)


def take_host_memory_over(path: Path) -> None:
    """Attach to memory whose descriptor, size and uuid are in the environment."""
    fd, size, uuid = os.environ["HANDLE"].split()
    with daxfs.open(path) as image:
        gpu = image.attach("cuda:0", int(fd), size=int(size), uuid=uuid)
        os.close(int(fd))
        check(gpu, image)


def keep_in_host_memory(path: Path) -> None:
    """Leave a copy to a holder; it is another one than that on the GPU."""
    with daxfs.open(os.environ["HELD"]) as image:
        with image.to("cuda-host:0") as gpu:
            assert gpu.copied
            gpu.keep()
        with image.to("cuda:0") as gpu:
            assert (gpu.copied, gpu.resident) == (True, True)
            gpu.keep()
    with daxfs.open(os.environ["HELD"]) as image:
        for text, resident in (("cuda-host:0", False), ("cuda:0", True)):
            with image.to(text) as gpu:
                assert (gpu.copied, gpu.resident) == (False, resident)
                check_contents(gpu, image)
        with image.to("cuda-host:0", writable=True) as gpu:
            assert gpu.copied


# Run by tests of their own, which give them what they need.
SPECIAL = (check, give_host_memory_away, take_host_memory_over, keep_in_host_memory)


if __name__ == "__main__":
    main(globals())
