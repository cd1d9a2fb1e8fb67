"""Images made of modules in memory."""

from __future__ import annotations

import json
import mmap
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import torch

import daxfs

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}
# Types that old versions of torch do not have.
_LATER = {
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float4_e2m1fn_x2": "F4",
}
_NAMES.update({getattr(torch, name): code for name, code in _LATER.items() if hasattr(torch, name)})

Content = Union[str, bytes, os.PathLike[str]]


def save_model(  # noqa: PLR0913
    module: torch.nn.Module | Mapping[str, torch.Tensor],
    output: str | os.PathLike[str] | None = None,
    *,
    into: str | None = None,
    files: Mapping[str, Content] | None = None,
    metadata: Mapping[str, str] | None = None,
    name: str = "model.safetensors",
    **options: Any,
) -> Any:
    """Pack the parameters and buffers of a module, or a state dictionary, from wherever they are in memory.

    output, into and further options are those of daxfs.pack: with a file its summary is returned, else the image.
    files: what lies beside the weights, by name: bytes, a text, or the path of a file. metadata: of the weights' file.
    Names of one memory are stored once, under the first of them; load_model() ties them again. The weights take their
    size once more while they are packed, in a memfd: no file is written but output.
    """
    state = module.state_dict() if isinstance(module, torch.nn.Module) else module
    kept, aliases = _without_duplicates(state)
    with tempfile.TemporaryDirectory(prefix="daxfs-") as folder:
        weights = _file_of(kept, {"format": "pt", **aliases, **(metadata or {})})
        try:
            target = Path(folder, *_parts(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(f"/proc/{os.getpid()}/fd/{weights}")
            for path, content in (files or {}).items():
                _put(Path(folder, *_parts(path)), content)
            return daxfs.pack(folder, output, into=into, links="follow", **options)  # type: ignore[call-overload]
        finally:
            os.close(weights)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        msg = f"a name in the image, such as 'tokenizer.json', not {path!r}"
        raise ValueError(msg)
    return parts


def _put(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.symlink_to(Path(content).absolute())


def _without_duplicates(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return one name of each memory, and the others with the name that is kept, as safetensors notes them."""
    kept: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            msg = f"{name!r} is no tensor but {type(value).__name__}: a state dictionary holds tensors"
            raise TypeError(msg)
        if value.device.type == "meta":
            msg = f"{name!r} is on the device meta: it has no values"
            raise ValueError(msg)
        if value.layout != torch.strided or value.dtype not in _NAMES:
            msg = f"{name!r}: {value.layout} of {value.dtype} is not stored by safetensors"
            raise ValueError(msg)
        # Conjugates and negatives share the memory, and have other values.
        kind = (value.dtype, value.is_conj(), value.is_neg())
        place = (value.device, value.data_ptr(), value.shape, value.stride(), *kind)
        first = seen.setdefault(place, name) if value.numel() else name
        if first == name:
            kept[name] = value
        else:
            aliases[name] = first
    return kept, aliases


def _file_of(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> int:
    """Return a memfd that holds a safetensors file; packing aligns its tensors."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    places: list[tuple[int, torch.Tensor]] = []
    end = 0
    # Large elements first, so that each lies on a multiple of its size.
    for name, value in sorted(state.items(), key=lambda item: -item[1].element_size()):
        shape = list(value.shape)
        code = _NAMES[value.dtype]
        if code == "F4":
            shape[-1] *= 2
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
        places.append((start, value))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 8)
    data = 8 + len(text)
    fd = os.memfd_create("daxfs:model", os.MFD_CLOEXEC)
    try:
        os.truncate(fd, data + end)
        os.pwrite(fd, struct.pack("<Q", len(text)) + text, 0)
        # Unmapped with the last reference to it: the traceback of an error has a tensor over it.
        memory = mmap.mmap(fd, data + end)
        for start, value in places:
            _copy(value, memory, data + start)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _copy(value: torch.Tensor, memory: mmap.mmap, offset: int) -> None:
    """Copy a tensor to its place, from any device, in one step."""
    if value.numel() == 0:
        return
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    target = torch.frombuffer(memory, dtype=bits, count=value.numel(), offset=offset).view(value.shape)
    target.copy_(value.detach().resolve_conj().resolve_neg().view(bits))
