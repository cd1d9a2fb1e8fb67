"""Images in a GPU's memory. Each test is a process with the simulated CUDA driver or, with DAXFS_TEST_GPU=1, the real.

What they do is in device_cases.py, device_host.py, device_memory.py and device_parts.py.
"""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Optional

import device_cases
import device_host
import device_memory
import device_parts
import pytest
from conftest import build_fake_cuda
from device_support import REAL, SKIPPED
from test_holder import DAXFS, Holder

import daxfs

from support import Spec, write_safetensors

CASES = [
    case
    for module in (device_cases, device_host, device_memory, device_parts)
    for _, case in inspect.getmembers(module, inspect.isfunction)
    if case.__module__ == module.__name__ and case not in module.SPECIAL
]
LIBRARIES = [case for case in CASES if case.__name__.startswith("taken_by_")]


def environment(library: Optional[Path], settings: dict[str, str]) -> dict[str, str]:
    """That of a process with the simulated driver, or the machine's."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("DAXFS_FAKE_CUDA_")}
    if library is not None:
        env["LD_LIBRARY_PATH"] = os.pathsep.join([str(library), *filter(None, [env.get("LD_LIBRARY_PATH")])])
    return {**env, **settings}


def command(case: Any, path: Path) -> list[str]:
    return [sys.executable, "-X", "faulthandler", inspect.getfile(case), case.__name__, str(path)]


def run(case: Any, path: Path, library: Optional[Path], **options: Any) -> None:
    """Run a case; a hang is a failure."""
    settings = getattr(case, "settings", None)
    if REAL and settings is not None:
        pytest.skip("needs the simulated driver")
    env = {**environment(library, settings or {}), **options.pop("env", {})}
    done = subprocess.run(
        command(case, path), env=env, capture_output=True, text=True, timeout=120, check=False, **options
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert (done.returncode, done.stderr) == (0, ""), f"{done.returncode}\n{done.stdout}{done.stderr}"


@pytest.fixture
def library(request: pytest.FixtureRequest) -> Optional[Path]:
    """The folder of the driver; None for the machine's."""
    return None if REAL else request.getfixturevalue("fake_cuda")


@pytest.mark.parametrize("case", [case for case in CASES if case not in LIBRARIES], ids=lambda case: case.__name__)
def test_case(case: Any, path: Path, library: Optional[Path]) -> None:
    run(case, path, library)


@pytest.mark.parametrize("case", LIBRARIES, ids=lambda case: case.__name__)
def test_library(case: Any, path: Path) -> None:
    if not REAL:
        pytest.skip("needs a GPU: DAXFS_TEST_GPU=1")
    names = case.__name__.removeprefix("taken_by_").split("_and_")
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    run(case, path, None)


def test_places_in_several_pieces(tmp_path: Path, library: Optional[Path]) -> None:
    (tmp_path / "in").mkdir()
    write_safetensors(tmp_path / "in" / "large.safetensors", {"across": Spec.filled("U8", (3, 1 << 20))})
    daxfs.pack(tmp_path / "in", tmp_path / "x.daxfs")
    run(device_memory.mapping_in_pieces, tmp_path / "x.daxfs", library)


def test_checkpoint(checkpoint: Path, tmp_path: Path, library: Optional[Path]) -> None:
    daxfs.pack(checkpoint, tmp_path / "x.daxfs")
    run(device_cases.a_checkpoint, tmp_path / "x.daxfs", library)


def test_split_image(path: Path, tmp_path: Path, library: Optional[Path]) -> None:
    whole = path.read_bytes()
    # With a page cache an image's data is in its backing file, at the offsets that it had in the base image.
    cache = struct.pack("<IIQQ", 0x70636163, 2, 4096, 8192).ljust(8192 + 8 * 4096, b"\0")
    split = bytearray(whole + b"\0" * (-len(whole) % 4096))
    struct.pack_into("<QQI", split, 88, len(split), len(cache), 8)
    struct.pack_into("<Q", split, 16, len(split) + len(cache))
    (tmp_path / "x.daxfs").write_bytes(split + cache)
    (tmp_path / "x.backing").write_bytes(whole[struct.unpack_from("<Q", whole, 24)[0] :])
    run(device_memory.a_split_image, tmp_path / "x.daxfs", library)


@pytest.mark.parametrize(
    ("give", "take"),
    [
        (device_memory.give_away, device_memory.take_over),
        (device_host.give_host_memory_away, device_host.take_host_memory_over),
    ],
    ids=["device", "host"],
)
def test_memory_outlives_the_process_that_filled_it(give: Any, take: Any, path: Path, library: Optional[Path]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        filler = subprocess.Popen(
            command(give, path),
            env=environment(library, {"PEER": str(theirs.fileno())}),
            pass_fds=[theirs.fileno()],
        )
        try:
            theirs.close()
            message, fds, _, _ = socket.recv_fds(ours, 100, 1)
            assert len(fds) == 1, "the first process failed"
        finally:
            filler.kill()
            filler.wait()
    try:
        run(take, path, library, pass_fds=fds, env={"HANDLE": f"{fds[0]} {message.decode()}"})
    finally:
        os.close(fds[0])


@pytest.mark.skipif(not DAXFS.exists(), reason="the package's scripts are not installed")
def test_a_holder_keeps_a_copy(path: Path, tmp_path: Path, library: Optional[Path]) -> None:
    holder = Holder(tmp_path / "s")
    try:
        holder.daxfs("load", "model", path)
        env = {"HELD": f"daxfs+unix://{holder.socket}/model"}
        run(device_memory.keep, path, library, env=env)
        run(device_memory.get_what_was_kept, path, library, env=env)
        holder.daxfs("swap", "model", path)
        run(device_parts.keep_what_a_rank_has, path, library, env=env)
        holder.daxfs("swap", "model", path)
        run(device_host.keep_in_host_memory, path, library, env=env)
    finally:
        holder.end()


@pytest.mark.skipif(not DAXFS.exists(), reason="the package's scripts are not installed")
def test_the_command_of_the_package_makes_copies(path: Path, tmp_path: Path, library: Optional[Path]) -> None:
    holder = Holder(tmp_path / "s", "--into", "cuda:0", f"model={path}", env=environment(library, {}))
    try:
        for _ in range(600):
            (image,) = json.loads(holder.daxfs("ps", "--json"))["images"]
            if image["copies"]:
                break
            time.sleep(0.1)
        assert [copy["size"] > image["size"] for copy in image["copies"]] == [True]
    finally:
        holder.end()


END = """
import daxfs, sys
image = daxfs.open(sys.argv[1])
gpu = image.to("cuda:0")
tensor = gpu.tensors()["all.F32"]
capsules = [tensor.__dlpack__(), tensor.__dlpack__(max_version=(1, 1)), gpu]
capsules.append(capsules)
"""


def test_what_is_left_when_the_interpreter_ends(path: Path, library: Optional[Path]) -> None:
    env = environment(library, {})
    done = subprocess.run([sys.executable, "-c", END, path], env=env, stderr=subprocess.PIPE, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


TRY = """
import daxfs, sys
image = daxfs.open(sys.argv[1])
for use in (daxfs.devices, lambda: image.to("cuda:0"), lambda: image.map("cuda:0")):
    try:
        use()
    except daxfs.DeviceError as error:
        print(error)
print(image["config.json"].size)
"""


def answers(path: Path, library: Path) -> list[str]:
    env = environment(library, {})
    done = subprocess.run(
        [sys.executable, "-c", TRY, path], env=env, check=True, stdout=subprocess.PIPE, text=True, timeout=120
    )
    return done.stdout.splitlines()


def test_without_a_driver(path: Path, tmp_path: Path) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has a CUDA driver")
    *errors, size = answers(path, tmp_path)
    assert len(errors) == 3
    for error in errors:
        assert error.startswith("CUDA (libcuda.so.1: cannot open shared object file")
        assert "it needs an NVIDIA driver" in error
    assert size == "18"


def test_with_an_old_driver(path: Path, tmp_path: Path) -> None:
    *errors, _ = answers(path, build_fake_cuda(tmp_path, "-DWITHOUT_VMM"))
    assert len(errors) == 3
    for error in errors:
        assert "CUDA with cuMemCreate, which this machine's libcuda.so.1 lacks" in error
