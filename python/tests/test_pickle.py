"""Pickling and copying: images that can be opened again, and processes of multiprocessing."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ALL_DTYPES

import daxfs

NAME = "all.F32"


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301


def test_what_has_a_path(image: daxfs.Image, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    weights = image["model.safetensors"]
    assert again(weights).path == weights.path
    assert again(weights).read_bytes() == weights.read_bytes()
    tensor = again(weights[NAME])
    assert (tensor.name, tensor.shape, tensor.raw.tobytes()) == (NAME, (3, 8), ALL_DTYPES[NAME].data)
    for tensors in (image.tensors(), image.tensors("model.safetensors"), weights.tensors()):
        assert list(again(tensors)) == list(tensors)
    assert list(again(image.directory("sub"))) == list(image.directory("sub"))
    assert list(again(image)) == list(image)
    assert again(image["caf\udce9.txt"]).read_bytes() == b"latin"
    # A relative path is that of this process's directory, not of the one that unpickles.
    monkeypatch.chdir(path.parent)
    with daxfs.open(path.name) as relative:
        data = pickle.dumps(relative["config.json"])
    monkeypatch.chdir("/")
    assert pickle.loads(data).name == "config.json"  # noqa: S301


def test_an_image_is_opened_once_for_all_of_a_pickle(image: daxfs.Image) -> None:
    tensors = image.tensors()
    loaded = again([image["config.json"], *tensors.values(), tensors])
    views = {tensor.numpy().ctypes.data for tensor in loaded[1:-1] if tensor.nbytes}
    spans = max(views) - min(views)
    assert spans < image.size, "they are of one mapping"
    one, two = again((tensors[NAME], tensors[NAME]))
    assert one.numpy().ctypes.data == two.numpy().ctypes.data
    assert one.numpy().ctypes.data != tensors[NAME].numpy().ctypes.data


def test_options_are_kept(path: Path) -> None:
    with daxfs.open(path, private=True) as image:
        loaded = again(image)
        loaded.tensors()[NAME].numpy()[:] = 3
        assert image.tensors()[NAME].raw == ALL_DTYPES[NAME].data
    with daxfs.open(path) as image:
        expected = image.content_hash
    assert expected
    with daxfs.open(path, expect=expected, strict=True, max_metadata=1 << 20) as image:
        assert again(image).content_hash == expected


def test_another_image_in_its_place(tree: Path, tmp_path: Path) -> None:
    place = tmp_path / "x.daxfs"
    daxfs.pack(tree, place)
    with daxfs.open(place) as image:
        pickles = [pickle.dumps(value) for value in (image, image["config.json"], image.tensors()[NAME])]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    daxfs.pack(tmp_path / "other", place)
    for data in pickles:
        with pytest.raises(daxfs.DaxfsError, match="another image"):
            pickle.loads(data)  # noqa: S301
    place.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickles[0])  # noqa: S301


def test_what_cannot_be_opened_again(tree: Path, path: Path) -> None:
    with daxfs.open(path, sealed_copy=True) as image, pytest.raises(TypeError, match="sealed copy"):
        pickle.dumps(image)
    with daxfs.pack(tree) as image:
        for value in (image, image["config.json"], image.tensors(), image.tensors()[NAME], image.directory()):
            with pytest.raises(TypeError, match=r"cannot pickle .*descriptor.*multiprocessing"):
                pickle.dumps(value)
        with daxfs.open(f"fd:{image.fileno()}") as other, pytest.raises(TypeError, match="descriptor"):
            pickle.dumps(other)
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(image)


def test_copies(tree: Path) -> None:
    with daxfs.pack(tree) as image:
        tensor = image.tensors()[NAME]
        for duplicate in (copy.copy, copy.deepcopy):
            for value in (tensor, image["config.json"], image.tensors(), image.directory("sub")):
                assert duplicate(value) is value
            other = duplicate(image)
            assert other is not image
            assert list(other) == list(image)
            other.close()
            assert not image.closed
        assert copy.deepcopy({"w": tensor, "more": [tensor]})["w"] is tensor
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(ValueError, match="closed"):
            duplicate(image)


def total(tensor: daxfs.Tensor) -> tuple[int, float, int]:
    """What another process sees."""
    return os.getpid(), float(np.asarray(tensor, np.float64).sum()), sys.getrefcount(tensor) and tensor.numpy().size


def of_image(image: daxfs.Image) -> tuple[str, int, str]:
    return image["config.json"].read_text(), len(image.tensors()), image.provenance


def put(queue: Any, tensors: daxfs.Tensors, file: daxfs.File) -> None:
    queue.put((len(tensors), file.read_bytes(), tensors[NAME].raw.tobytes()))


@pytest.fixture(params=["spawn", "forkserver"])
def context(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each way to start a process."""
    return multiprocessing.get_context(request.param)


@pytest.fixture(params=["path", "memfd", "sealed copy", "part"])
def shared(request: pytest.FixtureRequest, path: Path, tree: Path, tmp_path: Path) -> Iterator[daxfs.Image]:
    """Images with a name and without."""
    makers: dict[str, Callable[[], daxfs.Image]] = {
        "path": lambda: daxfs.open(path),
        "memfd": lambda: daxfs.pack(tree),
        "sealed copy": lambda: daxfs.open(path, sealed_copy=True),
        "part": lambda: inside(path, tmp_path / "behind"),
    }
    with makers[request.param]() as image:
        yield image


def inside(path: Path, place: Path) -> daxfs.Image:
    """The image, where it begins behind other bytes of a file."""
    place.write_bytes(bytes(8192) + path.read_bytes())
    with place.open("rb") as file:
        return daxfs.open(f"fd:{file.fileno()}@8192+{path.stat().st_size}")


def test_processes(shared: daxfs.Image, context: Any) -> None:
    tensor = shared.tensors()["all.U8"]
    queue = context.Queue()
    process = context.Process(target=put, args=(queue, shared.tensors(), shared["config.json"]))
    process.start()
    count, config, raw = queue.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0
    assert (count, config, raw) == (len(shared.tensors()), b'{"hidden_size": 8}', ALL_DTYPES[NAME].data)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        pid, sum_, size = pool.submit(total, tensor).result(timeout=120)
        assert pid != os.getpid()
        assert (sum_, size) == (float(np.asarray(tensor, np.float64).sum()), 24)
        assert pool.submit(of_image, shared).result(timeout=120)[:2] == ('{"hidden_size": 8}', len(shared.tensors()))
    with context.Pool(1) as workers:
        assert [size for _, _, size in workers.map(total, [tensor, tensor])] == [24, 24]


def test_fork(tree: Path) -> None:
    # In a process without the threads that other tests have started.
    code = """
    import multiprocessing, os, sys
    import daxfs

    def put(queue, tensors):
        queue.put((os.getpid(), tensors))
        answer.get()

    context = multiprocessing.get_context("fork")
    queue, answer = context.Queue(), context.Queue()
    image = daxfs.pack(sys.argv[1])
    process = context.Process(target=put, args=(queue, image.tensors()))
    process.start()
    pid, tensors = queue.get(timeout=120)
    answer.put(None)
    process.join()
    assert pid == process.pid != os.getpid()
    print(len(tensors), tensors["all.F32"].raw == image.tensors()["all.F32"].raw)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tree)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    with daxfs.pack(tree) as image:
        assert done.stdout == f"{len(image.tensors())} True\n"


def test_the_same_memory_under_a_name_that_means_another(tree: Path, tmp_path: Path) -> None:
    place = tmp_path / "x.daxfs"
    daxfs.pack(tree, place)
    with daxfs.open(place) as image:
        place.unlink()
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            assert pool.submit(of_image, image).result(timeout=120)[0] == '{"hidden_size": 8}'
        with pytest.raises(FileNotFoundError):
            again(image)
