"""Parts of tensors, copies by a plan, and lookup blocks: run by test_device.py as device_cases.py is."""

from __future__ import annotations

import gc
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ALL_DTYPES
from device_support import REAL, TENSOR, at, check_contents, lent, live, main, need, simulated
from test_dlpack import Legacy, Versioned

import daxfs

from support import BITS, NUMPY

KEYS: list[Any] = [
    slice(1, 3),
    slice(None),
    slice(-2, None),
    slice(2, 1),
    slice(0, 100),
    (slice(None), slice(2, 6)),
    (..., slice(2, 6)),
    (slice(0, 2), ...),
    (slice(None), slice(0, 0)),
    1,
    -1,
    np.int64(2),
    (slice(None), 3),
    (..., -8),
    ...,
    (),
]


def check_array(part: daxfs.DeviceTensorPart, wanted: np.ndarray[Any, Any]) -> None:
    """Compare a part with the same part of an array, as each consumer sees it."""
    assert (part.shape, part.ndim, part.size) == (wanted.shape, wanted.ndim, wanted.size)
    assert part.nbytes == wanted.nbytes
    assert part.read() == wanted.tobytes()
    assert part.is_contiguous == wanted.flags.c_contiguous
    interface = part.__cuda_array_interface__
    assert interface["shape"] == wanted.shape
    assert interface["data"][1] is True
    if wanted.size:
        strides = interface["strides"] or np.empty(wanted.shape, wanted.dtype).strides
        assert interface["data"][0] == part.device_ptr
        dims = [i for i, dim in enumerate(wanted.shape) if dim > 1]
        assert [strides[i] for i in dims] == [wanted.strides[i] for i in dims]
    for form, version in ((Versioned, (1, 1)), (Legacy, None)):
        managed = lent(part.__dlpack__(max_version=version))
        assert type(managed) is form
        array = managed.tensor
        assert array.shape[: array.ndim] == list(wanted.shape)
        assert (array.device_type, array.byte_offset) == (2, 0)
        assert (array.data or 0) == part.device_ptr
        assert array.strides[: array.ndim] == list(part.strides)


def parts_are_those_of_arrays(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        for name in ("all.F32", "all.BOOL", "all.I64", "all.C64"):
            tensor, array = gpu.tensors()[name], image.tensors()[name].numpy()
            for key in KEYS:
                check_array(tensor[key], array[key])
        tensor, array = gpu.tensors()["odd.many_dims"], image.tensors()["odd.many_dims"].numpy()
        for key in ((slice(None), 1), (..., 1), (slice(None),) * 3 + (slice(1, 3),), (0,)):
            check_array(tensor[key], array[key])
        assert gpu.tensors()["odd.scalar"][()].read() == image.tensors()["odd.scalar"].raw
        assert gpu.tensors()["odd.empty"][:, 1:3].shape == (0, 2)
        assert len(gpu.tensors()[TENSOR][1:]) == 2
        assert "with gaps" in repr(gpu.tensors()[TENSOR][:, 1:])
        assert [row.read() for row in gpu.tensors()[TENSOR]] == [gpu.tensors()[TENSOR][i].read() for i in range(3)]
        check_array(gpu.tensors()[TENSOR].part, image.tensors()[TENSOR].numpy())
        assert gpu.rank is None


def all_types_have_parts(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        for name, spec in ALL_DTYPES.items():
            tensor, row = gpu.tensors()[name], 8 * BITS[spec.dtype] // 8
            part = tensor[1:3]
            assert part.read() == spec.data[row : 3 * row]
            assert (part.nbytes, part.dtype_name, part.name) == (2 * row, spec.dtype, name)
            assert part.device_ptr == tensor.device_ptr + row
            columns = tensor[:, 4:8]
            assert columns.read() == b"".join(spec.data[i * row + row // 2 : (i + 1) * row] for i in range(3))
            assert hasattr(part, "__cuda_array_interface__") == (spec.dtype in NUMPY)
            if BITS[spec.dtype] < 8:
                with pytest.raises(BufferError, match="whole-byte types|6-bit types"):
                    part.__dlpack__(max_version=(1, 1))
        assert lent(gpu.tensors()["all.F4"][...].__dlpack__()).tensor.bits == 4
        with pytest.raises(daxfs.DeviceError, match="inside a byte"):
            gpu.tensors()["all.F4"][:, 1:3]


def numpy_is_told_where_they_are(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        tensor = gpu.tensors()[TENSOR]
        for array in (tensor, tensor[:]):
            with pytest.raises(TypeError, match=r"in the memory of cuda:0: .*read\(\)"):
                np.asarray(array)


def what_is_no_part(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        tensor = gpu.tensors()[TENSOR]
        for key, why in (
            (3, "no such index"),
            (-4, "no such index"),
            (1 << 70, "no such index"),
            ((0, 0, 0), "3 indices for a tensor of 2"),
            (slice(0, 3, 2), "without steps"),
            ((slice(1), slice(1)), "one dimension"),
            ((0, 0), "one dimension"),
            ((..., 0, ...), "one ellipsis"),
        ):
            with pytest.raises(IndexError, match=why):
                tensor[key]
        for key in ("a", 1.0, True, None, [0]):
            with pytest.raises(TypeError, match="numbers and slices"):
                tensor[key]  # type: ignore[index]
        with pytest.raises(IndexError):
            gpu.tensors()["odd.scalar"][0]
        with pytest.raises(TypeError, match="scalar"):
            len(gpu.tensors()["odd.scalar"].part)
        for use in (lambda: tensor[1:].__dlpack__(copy=True), lambda: tensor[1:].__dlpack__(dl_device=(1, 0))):
            with pytest.raises(BufferError):
                use()


@simulated()
def parts_hold_the_memory(path: Path) -> None:
    for hold in (
        lambda tensor: tensor[1:],
        lambda tensor: tensor.part,
        lambda tensor: tensor[:, 1:].__dlpack__(),
        lambda tensor: tensor[:, 1:].__dlpack__(max_version=(1, 1)),
    ):
        with daxfs.open(path) as image, image.to("cuda:0") as gpu:
            tensor = gpu.tensors()[TENSOR]
            pointer, held = tensor.device_ptr, hold(tensor)
        del image, gpu, tensor
        gc.collect()
        assert live() > 0
        assert at(pointer, 96) == ALL_DTYPES[TENSOR].data
        del held
        gc.collect()
        assert live() == 0


def plan_of(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"ranks": 2, "rules": list(rules)}


PLAN = plan_of(
    {"tensors": "all.F32", "split": 1, "gather": True},
    {"tensors": "all.I64", "split": 1},
    {"tensors": "all.*16", "split": 1, "gather": True},
    {"tensors": "all.U8", "on": 1},
    {"tensors": "odd.*", "on": "none"},
    {"files": "sub/*", "on": [0]},
)


def check_rank(gpu: daxfs.DeviceImage, image: daxfs.Image, rank: int) -> None:
    """Compare what a rank has by PLAN with the image."""
    tensors, half = gpu.tensors(), slice(4 * rank, 4 * rank + 4)
    assert gpu.rank == rank
    assert gpu.size < image.size
    for name in ("all.F32", "all.I16", "all.F16", "all.I64"):
        array = image.tensors()[name].numpy()[:, half]
        part = tensors[name].part
        assert part.is_contiguous == (name != "all.I64")
        assert part.shape == (3, 4)
        assert part.read() == array.tobytes()
        assert lent(part.__dlpack__(max_version=(1, 1))).tensor.shape[:2] == [3, 4]
        if not REAL and part.is_contiguous:
            assert at(part.device_ptr, part.nbytes) == array.tobytes()
    assert tensors["all.I64"].read() == image.tensors()["all.I64"].raw
    assert tensors["all.F64"].read() == tensors["all.F64"].part.read() == image.tensors()["all.F64"].raw
    whole = tensors["all.F32"]
    assert whole.shape == (3, 8)
    for use in (lambda: whole.device_ptr, whole.read, lambda: whole[0:1]):
        with pytest.raises(daxfs.NotPlacedError, match=f'tensor "all.F32" is not on rank {rank}, which has a part'):
            use()
    with pytest.raises(BufferError, match="which has a part"):
        whole.__dlpack__()
    # A mapping of what is there.
    expected = [name for name in image.tensors() if not name.startswith("odd.") and (name != "all.U8" or rank == 1)]
    assert list(tensors) == list(gpu["model.safetensors"]) == expected
    assert len(tensors) == len(expected)
    assert ("all.U8" in tensors) == ("all.U8" in gpu["model.safetensors"]) == (rank == 1)
    assert tensors.get("odd.scalar") is None
    for use in (lambda: tensors["odd.scalar"], lambda: gpu["model.safetensors"]["odd.scalar"]):
        with pytest.raises(daxfs.NotPlacedError, match=f"rank {rank}, which has nothing"):
            use()
    with pytest.raises(KeyError):
        tensors["odd.scalar"]
    with pytest.raises(daxfs.NotFoundError, match="misspelt"):
        tensors["misspelt"]
    notes = gpu["sub/deep/notes.txt"]
    if rank == 0:
        assert notes.read_bytes() == image["sub/deep/notes.txt"].read_bytes()
    else:
        with pytest.raises(daxfs.NotPlacedError, match=r"sub/deep/notes\.txt is not on rank 1"):
            notes.read_bytes()


def a_plan(path: Path) -> None:
    file = path.with_name("plan.json")
    file.write_text(json.dumps(PLAN))
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))

    with daxfs.open(path) as image:
        for rank in (0, 1):
            for plan in (PLAN, file, str(file)):
                with image.to("cuda:0", plan=plan, rank=rank, verify=True) as gpu:
                    check_rank(gpu, image, rank)
            with image.to("cuda:0", plan=PLAN, rank=rank, progress=progress) as gpu:
                assert steps[-1] == (gpu.size, gpu.size)
                with gpu.share() as handle:
                    attached = image.attach("cuda:0", handle, plan=PLAN, rank=rank)
                    check_rank(attached, image, rank)
                    with pytest.raises(daxfs.DaxfsError):
                        image.attach("cuda:0", handle)
                with pytest.raises(daxfs.DeviceError, match="whole images"):
                    gpu.lookup()


def wrong_plans(path: Path) -> None:
    with daxfs.open(path) as image:
        for plan, why in (
            ({}, "missing field `ranks`"),
            (plan_of({"tensors": "a", "slit": 0}), "unknown field `slit`"),
            (plan_of({"tensors": "a", "on": 2}), "rank 2 is not one of the 2"),
            (plan_of({"tensors": "all.F32", "split": 0}), r'"all.F32" of shape \[3, 8\]: rule 1 splits dimension 0'),
        ):
            with pytest.raises(ValueError, match=why):
                image.to("cuda:0", plan=plan, rank=0)
        file = path.with_name("no-text.json")
        file.write_bytes(b"\xff")
        with pytest.raises(ValueError, match="UTF-8"):
            image.to("cuda:0", plan=file, rank=0)
        with pytest.raises(ValueError, match="no rank 2"):
            image.to("cuda:0", plan=PLAN, rank=2)
        with pytest.raises(TypeError, match="needs rank"):
            image.to("cuda:0", plan=PLAN)
        with pytest.raises(TypeError, match="of a plan"):
            image.to("cuda:0", rank=0)
        with pytest.raises(FileNotFoundError):
            image.to("cuda:0", plan="/nonexistent/plan.json", rank=0)
        with pytest.raises(TypeError):
            image.to("cuda:0", plan=7, rank=0)  # type: ignore[arg-type]
        with pytest.raises(daxfs.NotPlacedError, match="nothing of it"):
            image.to("cuda:0", plan=plan_of({"tensors": "*", "on": "none"}), rank=0)
    assert live() == 0


def keep_what_a_rank_has(path: Path) -> None:
    """Leave what a rank has to the holder, and get it back."""
    for copied in (True, False):
        with daxfs.open(os.environ["HELD"]) as image, image.to("cuda:0", plan=PLAN, rank=1) as gpu:
            assert gpu.copied == copied
            check_rank(gpu, image, 1)
            if copied:
                gpu.keep()
    with daxfs.open(os.environ["HELD"]) as image, image.to("cuda:0") as gpu:
        assert gpu.copied
        check_contents(gpu, image)


def a_lookup_block(path: Path) -> None:
    with daxfs.open(path) as image, image.to("cuda:0") as gpu:
        lookup = gpu.lookup()
        assert lookup.device == "cuda:0"
        assert lookup.device_ptr % 8 == 0
        assert "DeviceLookup" in repr(lookup)
        assert lookup.hash("/config.json") == lookup.hash("config.json") != lookup.hash("empty")
        assert gpu.device_ptr + image["config.json"].extent[0] == gpu["config.json"].device_ptr
        if REAL:
            return
        block, memory = at(lookup.device_ptr, lookup.nbytes), at(gpu.device_ptr, gpu.size)
        gpu.close()
        del gpu
        gc.collect()
        assert at(lookup.device_ptr, lookup.nbytes) == block
    assert block[:8] == b"daxfslkp"
    # The header of the package finds files by the block, in C as in a kernel.
    folder = path.parent / "lookup"
    folder.mkdir(exist_ok=True)
    (folder / "image").write_bytes(memory)
    (folder / "block").write_bytes(block)
    source = Path(__file__).parents[2] / "tests" / "cuda" / "lookup.c"
    program = folder / "lookup"
    include = daxfs.get_include()
    subprocess.run([os.environ.get("CC", "cc"), "-O1", f"-I{include}", "-o", program, source], check=True)
    asked = f"path sub/deep/notes.txt\nhash {lookup.hash('config.json')}\npath nothing\n"
    done = subprocess.run(
        [program, folder / "image", folder / "block"], input=asked, check=True, capture_output=True, text=True
    )
    with daxfs.open(path) as image:
        found = []
        for name in ("sub/deep/notes.txt", "config.json"):
            total = 0
            for byte in image[name].read_bytes():
                total = (total * 31 + byte) % (1 << 64)
            found.append(f"kind 1 ino {image[name].ino} len {image[name].size} at 1 sum {total}")
    assert done.stdout.splitlines() == [*found, "none"]


def taken_by_torch(path: Path) -> None:
    import torch

    need(torch.cuda.is_available(), "torch was built without CUDA")
    with daxfs.open(path) as image, image.to("cuda:0") as gpu, image.to("cuda:0", plan=PLAN, rank=1) as one:
        array = image.tensors()[TENSOR].numpy()
        for part in (gpu.tensors()[TENSOR][:, 4:8], one.tensors()[TENSOR].part):
            tensor = torch.from_dlpack(part)
            assert tensor.data_ptr() == part.device_ptr
            assert (tensor.stride(), tensor.is_contiguous()) == (part.strides, part.is_contiguous)
            assert np.array_equal(tensor.cpu().numpy(), array[:, 4:8])


# Run by a test of its own, with a holder; and what the others use.
SPECIAL = (keep_what_a_rank_has, check_array, check_rank, plan_of)


if __name__ == "__main__":
    main(globals())
