"""Makes safetensors files by hand, byte by byte, so that the tests do not trust the code that they test."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Bits of an element, for every type of safetensors 0.8.
BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

# The numpy type of each, where numpy has one.
NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "C64": "<c8",
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
}

# The name in ml_dtypes of the others.
ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}

# What no consumer of DLPack takes.
NO_DLPACK = ("F6_E2M3", "F6_E3M2")


@dataclass(frozen=True)
class Spec:
    """A tensor to be written."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def filled(cls, dtype: str, shape: tuple[int, ...], seed: int = 0) -> Spec:
        """Make a tensor of bytes that differ from each other and from those of other seeds."""
        bits = BITS[dtype]
        for dim in shape:
            bits *= dim
        nbytes, rest = divmod(bits, 8)
        assert rest == 0
        if dtype == "BOOL":
            return cls(dtype, shape, bytes((i + seed) % 2 for i in range(nbytes)))
        return cls(dtype, shape, bytes((i * 7 + seed) % 251 for i in range(nbytes)))


def write_safetensors(
    path: Path, tensors: Mapping[str, Spec], metadata: Mapping[str, str] | None = None, pad: int = 8
) -> None:
    """Write a file with the tensors in the order given; the header is padded to `pad` bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, spec in tensors.items():
        end = offset + len(spec.data)
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % pad)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(spec.data for spec in tensors.values()))


def mappings(name: str) -> list[str]:
    """Lines of /proc/self/maps that show the file."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if name in line]


def is_writing_into(pid: int, directory: Path) -> bool:
    """Tell whether a process has a file below a directory open, be it one without a name yet."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            links.append(os.readlink(entry))
    return any(link.startswith(f"{directory}/") for link in links)


def copy_to_memfd(path: Path) -> int:
    """Return a memfd with the bytes of a file, which may be sealed."""
    fd = os.memfd_create("daxfs-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with path.open("rb") as file:
        while os.sendfile(fd, file.fileno(), None, 1 << 30):
            pass
    return fd
