"""What a process says when it writes to a read-only image, or its file was cut short, before it dies of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import daxfs

WRITE = """
import ctypes, resource, sys
import daxfs

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def address(tensor):
    import numpy as np
    return np.frombuffer(tensor, np.uint8).ctypes.data

def write(tensor, offset=0):
    ctypes.memset(address(tensor) + offset, 1, 1)
"""

EXPLAINED = (
    'daxfs: wrote to read-only memory: byte {byte} of tensor "{name}" ({dtype} {shape}) of '
    '"/model.safetensors", in the image {path}\n'
    "daxfs: images are mapped read-only: daxfs.open(..., private=True) gives writable memory of this process, "
    "tensor.clone() and numpy.array(tensor) give copies\n"
)


def run(path: Path, code: str, expected: int) -> str:
    """Run a program that dies by a signal, and return what it wrote to standard error."""
    command = [sys.executable, "-c", WRITE + textwrap.dedent(code), str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == -expected, done.stderr
    return done.stderr


def of_f32(path: Path, byte: int = 0) -> str:
    return EXPLAINED.format(byte=byte, name="all.F32", dtype="F32", shape="[3, 8]", path=path)


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_write(path: Path, order: str) -> None:
    opened = "tensor = daxfs.open(sys.argv[1]).tensors()['all.F32']"
    lines = ["daxfs.explain_faults()", opened]
    code = "\n".join(lines if order == "before" else reversed(lines))
    assert run(path, f"{code}\nwrite(tensor, 5)\nprint('alive')", signal.SIGSEGV) == of_f32(path, 5)


def test_every_tensor_is_named(path: Path) -> None:
    code = """
    daxfs.explain_faults()
    daxfs.explain_faults()
    others = [daxfs.open(sys.argv[1]) for _ in range(3)]
    tensor = daxfs.open(sys.argv[1]).tensors()["all.BF16"]
    del others
    write(tensor, 47)
    """
    stderr = run(path, code, signal.SIGSEGV)
    assert stderr == EXPLAINED.format(byte=47, name="all.BF16", dtype="BF16", shape="[3, 8]", path=path)


def test_a_write_to_a_file(path: Path) -> None:
    code = "daxfs.explain_faults()\nwrite(daxfs.open(sys.argv[1])['sub/large.bin'], 1000)"
    assert 'byte 1000 of file "/sub/large.bin", in the image' in run(path, code, signal.SIGSEGV)


@pytest.mark.parametrize("order", ["before", "after"])
def test_beside_faulthandler(path: Path, order: str) -> None:
    lines = ["daxfs.explain_faults()", "import faulthandler; faulthandler.enable()"]
    setup = "\n".join(lines if order == "before" else reversed(lines))
    stderr = run(path, f"{setup}\nwrite(daxfs.open(sys.argv[1]).tensors()['all.F32'])", signal.SIGSEGV)
    assert stderr.count(of_f32(path)) == 1
    assert stderr.count("Fatal Python error: Segmentation fault") == 1
    assert 'in write\n  File "<string>"' in stderr


def test_torch(path: Path) -> None:
    pytest.importorskip("torch")
    code = """
    import torch
    tensor = daxfs.open(sys.argv[1]).tensors()["all.F32"].torch()
    daxfs.explain_faults()
    assert tensor.sum().isfinite() or True
    tensor.add_(1)
    """
    assert run(path, code, signal.SIGSEGV) == of_f32(path)


def test_a_file_that_was_cut_short(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cut.daxfs"
    copy.write_bytes(path.read_bytes())
    code = """
    import os
    daxfs.explain_faults()
    tensor = daxfs.open(sys.argv[1]).tensors()["all.F32"]
    where = address(tensor)
    os.truncate(sys.argv[1], 0)
    ctypes.string_at(where, 1)
    """
    stderr = run(copy, code, signal.SIGBUS)
    assert stderr.startswith('daxfs: touched memory that is gone: byte 0 of tensor "all.F32" (F32 [3, 8]) of ')
    assert "daxfs.open(..., sealed_copy=True)" in stderr


@pytest.mark.parametrize(
    "fault",
    [
        "ctypes.memset(0x10, 1, 1)",  # nobody's memory
        "file = daxfs.open(sys.argv[1])['config.json']; at = address(file); del file; ctypes.memset(at, 1, 1)",
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "signal.raise_signal(signal.SIGSEGV)",
        "signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)",
    ],
)
def test_what_is_not_an_image_s(path: Path, fault: str) -> None:
    code = f"import os, signal, threading\ndaxfs.explain_faults()\nimage = daxfs.open(sys.argv[1])\ndel image\n{fault}"
    assert run(path, code, signal.SIGSEGV) == ""


def test_without_it_nothing_is_said(path: Path) -> None:
    assert run(path, "write(daxfs.open(sys.argv[1]).tensors()['all.F32'])", signal.SIGSEGV) == ""


def test_a_handler_of_the_program_still_runs(path: Path) -> None:
    code = """
    import os
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: os._exit(7))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(11, ctypes.cast(handler, ctypes.c_void_p))
    daxfs.explain_faults()
    write(daxfs.open(sys.argv[1]).tensors()["all.F32"])
    """
    command = [sys.executable, "-c", WRITE + textwrap.dedent(code), str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (7, of_f32(path))


def test_private_memory_is_written(path: Path) -> None:
    code = "daxfs.explain_faults()\nwrite(daxfs.open(sys.argv[1], private=True).tensors()['all.F32'])\nprint('alive')"
    command = [sys.executable, "-c", WRITE + code, str(path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "alive\n"


def test_hostile_names(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/a\x1b[31m\n\xff.bin")).write_bytes(bytes(8192))
    daxfs.pack(root, tmp_path / "x.daxfs")
    code = """
    daxfs.explain_faults()
    image = daxfs.open(sys.argv[1])
    write(next(iter(image.values())))
    """
    stderr = run(tmp_path / "x.daxfs", code, signal.SIGSEGV)
    assert "\x1b" not in stderr
    assert stderr.count("\n") == 2
