#!/usr/bin/env python3
"""Compiles the CUDA kernels to PTX: after a change of a *.cu file, or with --check to see that there was none.

    scripts/ptx.py            writes a *.ptx beside each *.cu
    scripts/ptx.py --check    compares them instead; exit status 1 when one is another

The results are checked in, so that nobody else needs the compiler: NVRTC, of the Python package nvidia-cuda-nvrtc-cu11,
which works without a GPU. Its version is pinned in scripts/requirements.txt: drivers take PTX of their own CUDA version
and older ones, and 11.7 is that of the oldest driver that is supported (515).
"""

from __future__ import annotations

import ctypes
import difflib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "crates/device/src/cuda/hash.cu",
    "examples/rust/05-cuda-gather/gather.cu",
    "examples/rust/06-cuda-walk/walk.cu",
)
# The oldest GPUs that the kernels run on; drivers compile them for what they find.
OPTIONS = ("--gpu-architecture=compute_70", "--std=c++14", f"--include-path={ROOT / 'crates/device/include'}")
NO_COMPILER = 77


def libraries() -> Iterator[Path]:
    """Paths of NVRTC in the installed package."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        yield from sorted(Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so.11*"))


def compile_ptx(nvrtc: ctypes.CDLL, source: Path) -> str:
    """Compile CUDA C++ and return PTX; end the program with the compiler's words when it is wrong."""
    program = ctypes.c_void_p()

    def call(name: str, *arguments: object) -> int:
        return int(getattr(nvrtc, name)(*arguments))

    def text(kind: str) -> str:
        size = ctypes.c_size_t()
        call(f"nvrtcGet{kind}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        call(f"nvrtcGet{kind}", program, buffer)
        return buffer.value.decode()

    words, name = source.read_bytes(), source.name.encode()
    if code := call("nvrtcCreateProgram", ctypes.byref(program), words, name, 0, None, None):
        sys.exit(f"ptx: nvrtcCreateProgram: {code}")
    options = (ctypes.c_char_p * len(OPTIONS))(*(option.encode() for option in OPTIONS))
    code = call("nvrtcCompileProgram", program, len(OPTIONS), options)
    if log := text("ProgramLog").strip():
        print(log, file=sys.stderr)
    if code:
        sys.exit(f"ptx: nvrtcCompileProgram: {code}")
    return text("PTX")


def main() -> int:
    """Write the result, or compare it."""
    found = next(libraries(), None)
    if found is None:
        print("no nvidia-cuda-nvrtc-cu11 in this Python: scripts/setup.sh python installs it on x86-64")
        return NO_COMPILER
    nvrtc = ctypes.CDLL(str(found))
    different = False
    for source in (ROOT / name for name in SOURCES):
        result = source.with_suffix(".ptx")
        ptx, name = compile_ptx(nvrtc, source), str(result.relative_to(ROOT))
        if sys.argv[1:] != ["--check"]:
            result.write_text(ptx)
            print(f"ptx: {name}")
            continue
        old, new = result.read_text().splitlines(), ptx.splitlines()
        differences = list(difflib.unified_diff(old, new, name, "compiled now", lineterm="", n=1))
        different |= bool(differences)
        print(*differences[:40], sep="\n", end="\n" if differences else "")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
