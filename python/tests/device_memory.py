"""Copying images to a GPU, sharing its memory, and mapping the host's: run by test_device.py as device_cases.py is."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import socket
import threading
import weakref
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
from conftest import ALL_DTYPES
from device_support import REAL, TENSOR, check_contents, lent, live, main, simulated
from test_dlpack import READ_ONLY

import daxfs

from support import copy_to_memfd

ADD_SEALS, SEAL_SHRINK, SEAL_GROW = 1033, 2, 4


def progress_is_told(path: Path) -> None:
    with daxfs.open(path) as image:
        steps: list[tuple[int, int]] = []
        threads = set()

        def progress(done: int, total: int) -> None:
            threads.add(threading.get_ident())
            steps.append((done, total))

        image.to("cuda:0", threads=4, piece=4096, progress=progress)
        assert steps[-1] == (image.size, image.size)
        assert steps == sorted(set(steps))
        assert {total for _, total in steps} == {image.size}
        assert threads == {threading.get_ident()}
        steps.clear()
        image.to("cuda:0", piece=1 << 20, verify=True, progress=progress)
        # Hard links count once, and the index and the EROFS view are files as others are.
        files = {image.stat(path).st_ino: file.size for path, file in image.items()}
        own = sum(image.stat(f".daxfs/{name}").st_size for name in ("index", "erofs"))
        total = sum(files.values()) + own
        assert {all_bytes for _, all_bytes in steps} <= {image.size, total}
        assert steps[-1] == (total, total)


def a_copy_is_compared(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0", register=True, direct=False) as gpu:
        gpu.verify()
        with image.attach("cuda:0", gpu.share()) as other:
            other.verify()
    memfd = copy_to_memfd(path)
    fcntl.fcntl(memfd, ADD_SEALS, SEAL_SHRINK | SEAL_GROW)
    with daxfs.open(memfd) as image:
        os.close(memfd)
        with image.to("cuda:0", register=True, verify=True) as gpu:
            check_contents(gpu, image)
        with image.map("cuda:0") as mapped, pytest.raises(daxfs.DeviceError, match="verify the image there"):
            mapped.verify()


@simulated()
def what_differs_is_named(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0", writable=True) as gpu:
        gpu.verify()
        ctypes.memset(gpu["sub/large.bin"].device_ptr + 5000, 7, 1)
        with pytest.raises(daxfs.DeviceError, match=r"/sub/large\.bin: the copy's hash is blake3:[0-9a-f]{64}, not"):
            gpu.verify()


def progress_cancels(path: Path) -> None:
    calls = []

    def progress(done: int, total: int) -> bool:
        calls.append(done)
        return False

    with daxfs.open(path) as image:
        with pytest.raises(daxfs.DeviceError, match="cancelled"):
            image.to("cuda:0", piece=4096, progress=progress)
        assert len(calls) == 1
        # Only False does: None is what most functions return, and 0 is no answer to a question of yes or no.
        for answer in (None, 0, True):
            image.to("cuda:0", progress=lambda *_, answer=answer: answer).close()
    assert live() == 0


def progress_raises(path: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise LookupError(f"at {done} of {total}")

    with daxfs.open(path) as image:
        with pytest.raises(LookupError, match=f"of {image.size}"):
            image.to("cuda:0", piece=4096, progress=progress)
        with pytest.raises(TypeError):
            image.to("cuda:0", progress=lambda: None)  # type: ignore[misc, arg-type]
    assert live() == 0


@simulated(DELAY_US=300_000)
def signals_are_heard(path: Path) -> None:
    def stop(*_: object) -> None:
        raise InterruptedError("stop")

    signal.signal(signal.SIGALRM, stop)
    source = path.parent / "long"
    source.mkdir()
    with (source / "file").open("wb") as file:
        file.truncate(96 << 20)
    # Three times what is on its way at once, which takes so long that the signal comes before the end.
    with daxfs.pack(source, into="memfd") as packed, daxfs.open(packed) as image:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(InterruptedError, match="stop"):
            image.to("cuda:0", threads=1, piece=4096)
    assert live() == 0


def bad_arguments(path: Path) -> None:
    with daxfs.open(path) as image:
        for text in ("", "cpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda: 0", "CUDA", "cuda0", "vulkan:0"):
            for use in (image.to, image.map, lambda text: image.attach(text, 0, size=1, uuid="GPU-" + "0" * 32)):
                with pytest.raises(ValueError, match="cuda:N|uuid"):
                    use(text)
        with pytest.raises(TypeError):
            image.to(0)  # type: ignore[arg-type]
        for number in (99, 1 << 70):
            with pytest.raises(daxfs.DeviceError, match="there is no device .*: there are .*, counted from 0: "):
                image.to(f"cuda:{number}")
        for threads in (0, 257):
            with pytest.raises(ValueError, match="threads is from 1 to 256"):
                image.to("cuda:0", threads=threads)
        for piece in (0, 4095, (1 << 30) + 1):
            with pytest.raises(ValueError, match="piece is from 4096 to"):
                image.to("cuda:0", piece=piece)


@simulated(MEMORY=2 << 20)
def too_little_memory(path: Path) -> None:
    with daxfs.open(path) as image:
        with pytest.raises(
            daxfs.DeviceMemoryError, match=r"\d+ bytes of device memory are needed, and 2097152 are free"
        ):
            image.to("cuda:0")
        with pytest.raises(MemoryError):
            image.to("cuda:0")
        with pytest.raises(RuntimeError):
            image.to("cuda:0")
    assert live() == 0


@simulated(FAIL="cuMemMap:1:999")
def a_failing_driver(path: Path) -> None:
    with daxfs.open(path) as image:
        with pytest.raises(daxfs.DeviceError, match=r"Simulated GPU 0: cuMemMap: unknown error \(999\)"):
            image.to("cuda:0")
        assert live() == 0
        image.to("cuda:0")


@simulated(ATTRIBUTES="102=0")
def an_old_device(path: Path) -> None:
    with daxfs.open(path) as image, pytest.raises(daxfs.DeviceError, match="virtual memory management"):
        image.to("cuda:0")


@simulated(DEVICES=2)
def two_devices(path: Path) -> None:
    assert daxfs.devices() == ["Simulated GPU 0", "Simulated GPU 1"]
    with daxfs.open(path) as image, image.to("cuda") as first, image.to("cuda:1") as second:
        assert [gpu.device for gpu in (first, second)] == ["cuda:0", "cuda:1"]
        assert first.uuid != second.uuid
        tensor = second.tensors()[TENSOR]
        assert tensor.__dlpack_device__() == (2, 1)
        assert lent(tensor.__dlpack__(dl_device=(2, 1))).tensor.device_id == 1
        assert tensor.device == "cuda:1"
        assert "on cuda:1 (Simulated GPU 1)" in repr(second)
        check_contents(second, image)
        with pytest.raises(daxfs.DeviceError, match=f"{first.uuid[4:]}.*{second.uuid[4:]}"):
            image.attach("cuda:1", first.share())


@simulated(DEVICES=0)
def no_device(path: Path) -> None:
    with pytest.raises(daxfs.DeviceError, match="no CUDA-capable device"):
        daxfs.devices()


def sharing(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu, daxfs.open(path) as other:
        handle = gpu.share()
        assert handle.size >= image.size
        assert handle.uuid == gpu.uuid
        assert not os.get_inheritable(handle.fileno())
        gpu.close()
        for attached in (
            other.attach("cuda:0", handle),
            other.attach("cuda:0", handle.fileno(), size=handle.size, uuid=handle.uuid),
            other.attach("cuda", handle, size=None),
        ):
            check_contents(attached, other)
            assert attached.resident
            assert attached.tensors()[TENSOR].__cuda_array_interface__["data"][1]
        with handle as same:
            assert same is handle
        assert handle.closed
        handle.close()
        assert handle.uuid in repr(handle)
        for use in (handle.fileno, lambda: other.attach("cuda:0", handle), handle.__enter__):
            with pytest.raises(ValueError, match="closed"):
                use()
        check_contents(attached, other)


def bad_handles(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu, gpu.share() as handle:
        fd, size, uuid = handle.fileno(), handle.size, handle.uuid
        for arguments in ({}, {"size": size}, {"uuid": uuid}):
            with pytest.raises(TypeError, match="needs size= and uuid="):
                image.attach("cuda:0", fd, **arguments)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="already"):
            image.attach("cuda:0", handle, size=size, uuid=uuid)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="memory is a file descriptor"):
            image.attach("cuda:0", "fd:3", size=size, uuid=uuid)  # type: ignore[call-overload]
        for text in ("", "GPU-", uuid[:-1], uuid + "0", uuid.replace("-", ""), "GPU-+" + uuid[5:]):
            with pytest.raises(ValueError, match="a uuid is GPU-"):
                image.attach("cuda:0", fd, size=size, uuid=text)
        with pytest.raises(daxfs.DeviceError, match="the memory lies on device 00000000-0000"):
            image.attach("cuda:0", fd, size=size, uuid="GPU-00000000-0000-0000-0000-000000000000")
        with pytest.raises(ValueError, match=str(image.size)):
            image.attach("cuda:0", fd, size=image.size - 1, uuid=uuid)
        with pytest.raises(daxfs.DeviceError):
            image.attach("cuda:0", fd, size=size + (2 << 20), uuid=uuid)
        with pytest.raises(OSError, match="Bad file descriptor"):
            image.attach("cuda:0", 12345, size=size, uuid=uuid)
        with path.open("rb") as file, pytest.raises(daxfs.DeviceError, match="cuMemImportFromShareableHandle"):
            image.attach("cuda:0", file, size=size, uuid=uuid)
        for text in (uuid.upper(), uuid[4:], "MIG-" + uuid[4:]):
            image.attach("cuda:0", fd, size=size, uuid=text).close()


@simulated()
def a_dma_buf(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        with pytest.raises(ValueError, match="dma-buf"):
            gpu.export("memfd")  # type: ignore[arg-type]
        fd = gpu.export("dma-buf")
        gpu.close()
        assert os.pread(fd, image.size, 0) == path.read_bytes()[: image.size]
        assert not os.get_inheritable(fd)
        os.close(fd)


@simulated(ATTRIBUTES="124=0")
def no_dma_buf(path: Path) -> None:
    with daxfs.open(path) as image, pytest.raises(daxfs.DeviceError, match="cannot be exported"):
        image.to("cuda:0").export("dma-buf")


def mapping_in_place(path: Path) -> None:
    fd = copy_to_memfd(path)
    fcntl.fcntl(fd, ADD_SEALS, SEAL_SHRINK | SEAL_GROW)
    with daxfs.open(fd) as image, image.map("cuda:0") as view:
        assert (view.device, view.resident, view.size) == ("cuda:0", False, image.size)
        assert "host memory for cuda:0" in repr(view)
        check_contents(view, image)
        tensor = view.tensors()[TENSOR]
        assert tensor.__dlpack_device__() == (3, 0)
        managed = lent(tensor.__dlpack__(max_version=(1, 1)))
        assert (managed.tensor.device_type, managed.tensor.device_id, managed.flags) == (3, 0, READ_ONLY)
        assert tensor.__cuda_array_interface__["data"] == (tensor.device_ptr, True)
        with pytest.raises(BufferError, match="consumers of DLPack 1 only"):
            tensor.__dlpack__()
        # The GPU's memory to who asks for it, by the GPU's address: the same bytes.
        for read in (tensor, tensor[1:]):
            gpus = lent(read.__dlpack__(max_version=(1, 1), dl_device=(2, 0)))
            assert (gpus.tensor.device_type, gpus.tensor.device_id, gpus.flags) == (2, 0, READ_ONLY)
            assert gpus.tensor.data == read.device_ptr
        with pytest.raises(BufferError, match=r"on device \(3, 0\), not on \(2, 1\)"):
            tensor.__dlpack__(max_version=(1, 1), dl_device=(2, 1))
        with pytest.raises(BufferError, match="consumers of DLPack 1 only"):
            tensor.__dlpack__(dl_device=(2, 0))
        del gpus, read
        # CUDA's host memory is the CPU's, which numpy reads.
        array = np.from_dlpack(tensor)
        assert array.tobytes() == ALL_DTYPES[TENSOR].data
        assert not array.flags.writeable
        # What is written into the memory is seen: it is the same.
        at_file, _ = image["config.json"].extent
        os.pwrite(fd, b"[", at_file)
        assert view["config.json"].read_at(0, 1) == b"["
        for use in (view.share, lambda: view.export("dma-buf")):
            with pytest.raises(daxfs.DeviceError, match="host memory"):
                use()
        ended = weakref.ref(tensor)
        del tensor, managed
    gc.collect()
    assert ended() is None
    assert array.tobytes() == ALL_DTYPES[TENSOR].data
    assert live() > 0 or REAL
    del array
    os.close(fd)


def mapping_in_pieces(path: Path) -> None:
    fd = copy_to_memfd(path)
    fcntl.fcntl(fd, ADD_SEALS, SEAL_SHRINK | SEAL_GROW)
    with daxfs.open(fd) as image, image.map("cuda:0", piece=2 << 20) as view:
        file = view["large.safetensors"]
        tensor = file["across"]
        for use in (lambda: file.device_ptr, lambda: tensor.device_ptr):
            with pytest.raises(daxfs.DeviceError, match="2 places"):
                use()
        for use in (lambda: tensor.__dlpack__(), lambda: hasattr(tensor, "__cuda_array_interface__")):
            with pytest.raises(BufferError, match="2 places of the device"):
                use()
        assert file.read_bytes() == image["large.safetensors"].read_bytes()
        assert tensor.read() == image["large.safetensors"]["across"].raw
        assert tensor.__dlpack_device__() == (3, 0)
    os.close(fd)


def what_cannot_be_mapped(path: Path) -> None:
    fd = copy_to_memfd(path)
    with daxfs.open(fd) as image, pytest.raises(daxfs.DeviceError, match="can shrink under the device"):
        image.map("cuda:0")
    os.close(fd)
    with (
        daxfs.open(path, private=True) as image,
        pytest.raises(daxfs.DeviceError, match="shares? their pages|in place|is private"),
    ):
        image.map("cuda:0")


def mapped(image: daxfs.Image) -> Optional[daxfs.DeviceImage]:
    """Map an image, unless the driver pins only what could be written."""
    try:
        return image.map("cuda:0")
    except daxfs.DeviceError as error:
        if "only what could be written" not in str(error):
            raise
        return None


def what_cannot_be_written_is_mapped(path: Path) -> None:
    for sealed in (True, False):
        with daxfs.open(path, sealed_copy=sealed) as image:
            view = mapped(image)
            # A card whose driver does not is a good one, too.
            assert view is not None or REAL
            if view is not None:
                assert not view.resident
                check_contents(view, image)
                view.close()


@simulated(ATTRIBUTES="113=0")
def what_only_newer_devices_map(path: Path) -> None:
    with daxfs.open(path) as image, pytest.raises(daxfs.DeviceError, match="a memfd, but no file"):
        image.map("cuda:0")
    refused = pytest.raises(daxfs.DeviceError, match="sealed against writing.*copy the image to the device")
    with daxfs.open(path, sealed_copy=True) as image, refused:
        image.map("cuda:0")


def a_split_image(path: Path) -> None:
    backing = path.with_suffix(".backing")
    steps = []
    with daxfs.open(path, backing=backing) as image:
        gpu = image.to("cuda:0", progress=lambda *step: steps.append(step))
        assert (image.size, image.size) in steps
        assert steps[-1] == (backing.stat().st_size,) * 2
        check_contents(gpu, image)
        for use in (gpu.share, lambda: gpu.export("dma-buf")):
            with pytest.raises(daxfs.DeviceError, match="split image lies in two memories"):
                use()
        assert gpu.tensors()[TENSOR].read() == ALL_DTYPES[TENSOR].data
        # Without its backing file only the image's own memory is copied, which is none of the files' data.
        without = daxfs.open(path).to("cuda:0")
        with pytest.raises(daxfs.DaxfsError, match="backing file"):
            without["config.json"].device_ptr  # noqa: B018
        with pytest.raises(daxfs.DeviceError, match="packed as one image"):
            image.attach("cuda:0", without.share())


def give_away(path: Path) -> None:
    """Send the memory through a socket, whose descriptor is in the environment, and wait to be killed."""
    with daxfs.open(path) as image, socket.socket(fileno=int(os.environ["PEER"])) as peer:
        handle = image.to("cuda:0").share()
        message = f"{handle.size} {handle.uuid}".encode()
        socket.send_fds(peer, [message], [handle.fileno()])
        peer.recv(1)


def take_over(path: Path) -> None:
    """Attach to memory whose descriptor, size and uuid are in the environment."""
    fd, size, uuid = os.environ["HANDLE"].split()
    with daxfs.open(path) as image:
        gpu = image.attach("cuda:0", int(fd), size=int(size), uuid=uuid)
        os.close(int(fd))
        check_contents(gpu, image)


def keep(path: Path) -> None:
    """Make a copy of a holder's image, and leave it to the holder."""
    with daxfs.open(os.environ["HELD"]) as image, image.to("cuda:0") as gpu:
        assert gpu.copied
        gpu.keep()
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        assert gpu.copied
        with pytest.raises(daxfs.DeviceError, match="came from no holder"):
            gpu.keep()


def get_what_was_kept(path: Path) -> None:
    """Map the copy that the holder has."""
    with daxfs.open(os.environ["HELD"]) as image:
        with image.to("cuda:0") as gpu:
            assert not gpu.copied
            assert gpu.resident
            check_contents(gpu, image)
        with image.to("cuda:0", writable=True) as gpu:
            assert gpu.copied


# Run by tests of their own, which give them what they need.
SPECIAL = (mapped, mapping_in_pieces, a_split_image, give_away, take_over, keep, get_what_was_kept)


if __name__ == "__main__":
    main(globals())
