"""Reading images in a GPU's memory, lending their tensors, and who keeps the memory.

test_device.py runs each function in a process of its own, since the CUDA driver is looked for when a process starts:

    LD_LIBRARY_PATH=... python device_cases.py NAME IMAGE
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from conftest import ALL_DTYPES, METADATA, SHARDS
from device_support import TENSOR, at, check_contents, lent, live, main, need, rights, simulated
from test_dlpack import CODES, READ_ONLY, Legacy, Versioned, inside

import daxfs

from support import NO_DLPACK, NUMPY


def every_byte(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        assert (gpu.device, gpu.resident, gpu.size, gpu.closed) == ("cuda:0", True, image.size, False)
        assert len(gpu.uuid) == 40
        assert gpu.uuid.startswith("GPU-")
        check_contents(gpu, image)


def pieces_of_all_threads(path: Path) -> None:
    with daxfs.open(path) as image:
        for threads, piece in ((1, 4096), (3, 65536 + 512), (8, 1 << 20)):
            with image.to("cuda", threads=threads, piece=piece, verify=True) as gpu:
                check_contents(gpu, image)


def a_sealed_image(path: Path) -> None:
    with daxfs.open(path, sealed_copy=True) as image, image.to("cuda") as gpu:
        check_contents(gpu, image)


def the_mapping(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        assert isinstance(gpu, Mapping)
        assert list(gpu) == list(image) == list(gpu.keys())
        assert len(gpu) == len(image) == len(list(gpu.values()))
        assert [name for name, _ in gpu.items()] == list(image)
        assert "link.json" in gpu
        assert "sub" not in gpu
        assert gpu.get("nothing") is None
        assert gpu.get("nothing", 7) == 7
        with pytest.raises(daxfs.NotFoundError, match="sub"):
            gpu["sub"]
        with pytest.raises(daxfs.NotFoundError, match="nothing"):
            gpu["nothing"]
        file = gpu[b"sub/deep/notes.txt"]
        assert (file.name, file.path, file.size) == ("notes.txt", "sub/deep/notes.txt", 8)
        assert file.read_at(1, 3) == image["sub/deep/notes.txt"].read_at(1, 3)
        assert (file.read_at(6), file.read_at(8), file.read_at(100, 5), file.read_at(0, 0)) == (b"e\n", b"", b"", b"")


def tensors_by_name(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        file, tensors, host = gpu["model.safetensors"], gpu.tensors(), image.tensors()
        assert isinstance(tensors, Mapping)
        assert list(file) == list(tensors) == list(host) == list(file.keys())
        assert len(tensors) == len(host) == len(list(file.values())) == len(list(file.items()))
        assert file.metadata == tensors.metadata == METADATA
        assert [shard.path for shard in tensors.shards] == ["model.safetensors"]
        assert TENSOR in file
        assert "nothing" not in file
        for key in (None, 3, b"all.F32", object()):
            assert key not in file
            assert key not in tensors
            assert key not in gpu or key == b"all.F32"
        assert list(tensors | {"new": 1}) == [*host, "new"]
        assert list({"new": 1} | tensors) == ["new", *host]
        assert "<td>all.BF16</td><td>BF16</td>" in tensors._repr_html_()
        assert (tensors._ipython_key_completions_(), gpu._ipython_key_completions_()) == (list(host), list(image))
        assert file.get("nothing") is tensors.get("nothing") is None
        with pytest.raises(daxfs.NotFoundError, match="nothing"):
            file["nothing"]
        for name, tensor in tensors.items():
            for attribute in ("name", "dtype", "dtype_name", "shape", "ndim", "size", "nbytes", "offset"):
                assert getattr(tensor, attribute) == getattr(host[name], attribute), (name, attribute)
            assert tensor.device == "cuda:0"
            assert tensor.file.path == "model.safetensors"
            assert tensor.device_ptr == tensor.file.device_ptr + tensor.offset
        assert len(tensors["all.F32"]) == 3
        with pytest.raises(TypeError, match="scalar"):
            len(tensors["odd.scalar"])


def capsules(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        for name, tensor in gpu.tensors().items():
            assert tensor.__dlpack_device__() == (2, 0)
            if tensor.dtype_name in NO_DLPACK or name == "odd.f4_last_odd":
                with pytest.raises(BufferError, match="bytes"):
                    tensor.__dlpack__(max_version=(1, 1))
                continue
            for form, version in ((Versioned, (1, 1)), (Legacy, None)):
                managed = lent(tensor.__dlpack__(max_version=version))
                assert type(managed) is form
                array = managed.tensor
                assert (array.device_type, array.device_id, array.byte_offset) == (2, 0, 0)
                assert (array.code, array.bits, array.lanes) == CODES[tensor.dtype_name]
                assert (array.data or 0) == tensor.device_ptr
                shape = list(tensor.shape)
                if tensor.dtype_name == "F4":
                    shape[-1] //= 2
                assert array.shape[: array.ndim] == shape
                if form is Versioned:
                    assert managed.flags == READ_ONLY


def requests_of_dlpack(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        tensor = gpu.tensors()[TENSOR]
        for stream in (None, -1, 1, 2, 1 << 40):
            assert lent(tensor.__dlpack__(stream=stream, copy=False, dl_device=(2, 0))).tensor.data
        for device in ((1, 0), (2, 1), (3, 0)):
            with pytest.raises(BufferError, match="on device"):
                tensor.__dlpack__(dl_device=device)
        with pytest.raises(BufferError, match="copied"):
            tensor.__dlpack__(copy=True)
        with pytest.raises((BufferError, RuntimeError)):
            np.from_dlpack(tensor)


def asked_of_a_jax_without_a_gpu(path: Path) -> None:
    import jax

    need(all(device.platform == "cpu" for device in jax.devices()), "jax has a GPU")
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        tensor = gpu.tensors()[TENSOR]
        for use in (lambda: jax.dlpack.from_dlpack(tensor), tensor.jax, tensor.part.jax):
            with pytest.raises(RuntimeError, match="cuda"):
                use()


def array_interface(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        for tensor in gpu.tensors().values():
            assert hasattr(tensor, "__cuda_array_interface__") == (tensor.dtype_name in NUMPY), tensor
            if tensor.dtype_name in NUMPY:
                interface = tensor.__cuda_array_interface__
                assert interface == {
                    "shape": tensor.shape,
                    "typestr": np.dtype(NUMPY[tensor.dtype_name]).str,
                    "data": (tensor.device_ptr if tensor.nbytes else 0, True),
                    "strides": None,
                    "stream": None,
                    "version": 3,
                }
        with pytest.raises(AttributeError, match="BF16; use DLPack"):
            gpu.tensors()["all.BF16"].__cuda_array_interface__  # noqa: B018


@simulated()
def read_only_and_writable(path: Path) -> None:
    with daxfs.open(path) as image:
        host = bytes(image.tensors()[TENSOR].raw)
        for writable in (False, True):
            gpu = image.to("cuda:0", writable=writable)
            tensor = gpu.tensors()[TENSOR]
            assert rights(tensor.device_ptr) == ("rw" if writable else "r-")
            assert tensor.__cuda_array_interface__["data"][1] is not writable
            flags = lent(tensor.__dlpack__(max_version=(1, 1))).flags
            assert flags == (0 if writable else READ_ONLY)
        ctypes.memset(tensor.device_ptr, 7, tensor.nbytes)
        assert tensor.read() == b"\7" * tensor.nbytes
        assert image.tensors()[TENSOR].raw == host


HOLDERS: dict[str, Callable[[daxfs.DeviceImage], Any]] = {
    "file": lambda gpu: gpu["config.json"],
    "tensors": lambda gpu: gpu.tensors(),
    "tensor": lambda gpu: gpu.tensors()[TENSOR],
    "file of a tensor": lambda gpu: gpu.tensors()[TENSOR].file,
    "keys": lambda gpu: gpu.tensors().keys(),
    "versioned capsule": lambda gpu: gpu.tensors()[TENSOR].__dlpack__(max_version=(1, 1)),
    "legacy capsule": lambda gpu: gpu.tensors()[TENSOR].__dlpack__(),
}


@simulated()
def what_holds_the_memory(path: Path) -> None:
    for name, hold in HOLDERS.items():
        image = daxfs.open(path)
        gpu = image.to("cuda:0")
        pointer, host = gpu.tensors()[TENSOR].device_ptr, ALL_DTYPES[TENSOR].data
        held = hold(gpu)
        gpu.close()
        image.close()
        assert gpu.closed
        del gpu, image
        gc.collect()
        assert live() > 0, name
        assert at(pointer, len(host)) == host
        del held
        gc.collect()
        assert live() == 0, name


@simulated()
def a_consumer_ends_its_loan(path: Path) -> None:
    for version in (None, (1, 1)):
        with daxfs.open(path) as image:
            capsule = image.to("cuda:0").tensors()[TENSOR].__dlpack__(max_version=version)
        # As a consumer does: takes the struct, and calls its deleter when it is through, on any thread.
        managed = inside(capsule)
        name = b"used_dltensor_versioned" if version else b"used_dltensor"
        ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), ctypes.c_char_p(name))
        del capsule
        gc.collect()
        assert live() > 0
        deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(managed.deleter)
        thread = threading.Thread(target=deleter, args=(ctypes.addressof(managed),))
        thread.start()
        thread.join()
        assert live() == 0


def a_closed_image(path: Path) -> None:
    image = daxfs.open(path)
    gpu = image.to("cuda:0")
    tensor = gpu.tensors()[TENSOR]
    gpu.close()
    gpu.close()
    assert repr(gpu) == "<daxfs.DeviceImage, closed>"
    for use in (
        lambda: gpu["config.json"],
        lambda: len(gpu),
        lambda: gpu.device,
        lambda: gpu.resident,
        lambda: gpu.tensors(),
        lambda: gpu.share(),
        lambda: gpu.export("dma-buf"),
        lambda: gpu.__enter__(),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()
    image.close()
    for use in (lambda: image.to("cuda:0"), lambda: image.map("cuda:0"), lambda: image.attach("cuda:0", 0)):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert tensor.read() == ALL_DTYPES[TENSOR].data


def a_checkpoint(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        tensors = gpu.tensors()
        assert list(tensors) == sorted(name for shard in SHARDS.values() for name in shard)
        assert [shard.path for shard in tensors.shards] == list(SHARDS)
        for shard, specs in SHARDS.items():
            for name, spec in specs.items():
                assert tensors[name].read() == gpu[shard][name].read() == spec.data
                assert tensors[name].file.path == shard


def taken_by_torch(path: Path) -> None:
    import torch

    need(torch.cuda.is_available(), "torch was built without CUDA")
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        for name in ("all.F32", "all.BF16", "all.F8_E4M3", "all.I64", "odd.unaligned", "odd.empty"):
            tensor = torch.from_dlpack(gpu.tensors()[name])
            assert tensor.device == torch.device("cuda:0")
            assert tensor.data_ptr() == gpu.tensors()[name].device_ptr or not tensor.numel()
            assert bytes(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()) == image.tensors()[name].raw
        # Of __cuda_array_interface__ torch takes only what can be written.
        with pytest.raises(TypeError, match="read only"):
            torch.as_tensor(gpu.tensors()[TENSOR], device="cuda:0")
        # Host memory it takes as the GPU's.
        with image.map("cuda:0") as view:
            tensor = torch.from_dlpack(view.tensors()[TENSOR].__dlpack__(max_version=(1, 0), dl_device=(2, 0)))
            assert tensor.device == torch.device("cuda:0")
            assert bytes(tensor.cpu().numpy()) == image.tensors()[TENSOR].raw
        with image.to("cuda:0", writable=True) as own:
            tensor = torch.as_tensor(own.tensors()[TENSOR], device="cuda:0")
            assert tensor.data_ptr() == own.tensors()[TENSOR].device_ptr
            assert bytes(tensor.cpu().numpy()) == image.tensors()[TENSOR].raw


def taken_by_cupy(path: Path) -> None:
    import cupy

    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        tensor = gpu.tensors()[TENSOR]
        for array in (cupy.from_dlpack(tensor), cupy.asarray(tensor)):
            assert array.data.ptr == tensor.device_ptr
            assert array.get().tobytes() == image.tensors()[TENSOR].raw


def taken_by_jax(path: Path) -> None:
    import jax

    need(any(device.platform == "gpu" for device in jax.devices()), "jax has no CUDA backend")
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        for name in ("all.F32", "all.BF16"):
            tensor = gpu.tensors()[name]
            for array in (jax.dlpack.from_dlpack(tensor), tensor.jax(), tensor.part.jax()):
                assert np.asarray(array).tobytes() == image.tensors()[name].raw


def taken_by_torch_and_cupy_and_jax(path: Path) -> None:
    """All of them in one process, with one primary context and their own streams."""
    import cupy
    import jax
    import torch

    need(torch.cuda.is_available(), "torch was built without CUDA")
    need(any(device.platform == "gpu" for device in jax.devices()), "jax has no CUDA backend")
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        tensor, wanted = gpu.tensors()[TENSOR], image.tensors()[TENSOR].raw
        theirs = torch.from_dlpack(tensor)
        with torch.cuda.stream(torch.cuda.Stream()):
            doubled = theirs + theirs
        arrays = [cupy.from_dlpack(tensor), cupy.from_dlpack(theirs), jax.dlpack.from_dlpack(tensor)]
        torch.cuda.synchronize()
        assert theirs.data_ptr() == arrays[0].data.ptr == arrays[1].data.ptr == tensor.device_ptr
        assert bytes(theirs.cpu().numpy()) == arrays[0].get().tobytes() == np.asarray(arrays[2]).tobytes() == wanted
        assert bytes((doubled - theirs).cpu().numpy()) == wanted
        # A copy for another consumer while they hold theirs.
        with image.to("cuda:0") as again:
            assert again.tensors()[TENSOR].read() == wanted
    # Closed, and still theirs.
    assert bytes(theirs.cpu().numpy()) == arrays[1].get().tobytes() == wanted


# Run by a test of its own, with another image.
SPECIAL = (a_checkpoint,)


if __name__ == "__main__":
    main(globals())
