"""Threads: the same objects from many of them, and long work that does not stop the others."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from conftest import ALL_DTYPES

import daxfs


def test_one_image_in_many_threads(image: daxfs.Image) -> None:
    tensors = image.tensors()

    def use(seed: int) -> bool:
        for name, spec in ALL_DTYPES.items():
            tensor = tensors[name] if seed % 2 else image["model.safetensors"][name]
            if tensor.raw != spec.data or np.asarray(tensor).nbytes != len(spec.data):
                return False
        return len(image) == 9

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(64)))


def test_closing_while_others_read(path: Path) -> None:
    def use(image: daxfs.Image) -> str:
        try:
            return image["config.json"].read_bytes().decode()
        except ValueError as error:
            return str(error)

    for _ in range(20):
        image = daxfs.open(path)
        with ThreadPoolExecutor(4) as pool:
            results = [pool.submit(use, image) for _ in range(32)]
            image.close()
        seen = {result.result() for result in results}
        assert seen <= {'{"hidden_size": 8}', "the image is closed"}


@pytest.fixture
def no_switching() -> Iterator[None]:
    """Have the interpreter hand its lock to another thread only when the running one lets go of it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("no_switching")
@pytest.mark.parametrize(
    "work",
    [
        lambda path, image: image["sub/large.bin"].hash(),
        lambda path, image: image["sub/large.bin"].read_bytes(),
        lambda path, image: daxfs.open(path).close(),
        lambda path, image: daxfs.pack(path).close(),
        lambda path, image: image.populate(),
    ],
    ids=["hash", "read_bytes", "open", "pack", "populate"],
)
def test_the_lock_is_released(path: Path, image: daxfs.Image, work: Callable[[Path, daxfs.Image], Any]) -> None:
    ran = threading.Event()
    gate = threading.Lock()
    gate.acquire()

    def other() -> None:
        with gate:
            ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    gate.release()
    # The other thread can only run while this one is inside `work` and has let go of the lock. How soon the system
    # wakes it is not for us to say, hence several tries; with the lock held it would never run.
    for _ in range(10_000):
        if ran.is_set():
            break
        work(path, image)
    assert ran.is_set()
    thread.join()
