"""Sets of tensors as people have them, and errors that say what to do."""

from __future__ import annotations

import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

import daxfs


def safetensors(name: str, value: bytes = b"1") -> bytes:
    header = json.dumps({name: {"dtype": "U8", "shape": [len(value)], "data_offsets": [0, len(value)]}}).encode()
    return struct.pack("<Q", len(header)) + header + value


def pack(tmp_path: Path, files: dict[str, bytes]) -> daxfs.Image:
    tree = tmp_path / "tree"
    for name, contents in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    daxfs.pack(tree, tmp_path / "image.daxfs")
    return daxfs.open(tmp_path / "image.daxfs")


def test_variants(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"half": "half.safetensors"}}).encode()
    image = pack(
        tmp_path,
        {
            "m/model.safetensors": safetensors("plain"),
            "m/model.int8.safetensors": safetensors("int8"),
            "m/half.safetensors": safetensors("half"),
            "m/model.safetensors.index.fp16.json": index,
        },
    )
    assert list(image.tensors("m/model.safetensors")) == ["plain"]
    assert list(image.tensors("m", variant="fp16")) == ["half"]
    assert list(image.tensors(variant="int8")) == ["int8"]
    assert list(pickle.loads(pickle.dumps(image.tensors("m", variant="fp16")))) == ["half"]  # noqa: S301
    with pytest.raises(daxfs.NotFoundError, match='no tensors of the variant "bf16"; there are fp16, int8'):
        image.tensors("m", variant="bf16")
    with pytest.raises(ValueError, match="this is a file"):
        image.tensors("m/model.safetensors", variant="fp16")


def test_shards_without_an_index(tmp_path: Path) -> None:
    files = {f"model-0000{n}-of-00003.safetensors": safetensors(f"t{n}", bytes([n])) for n in (1, 2, 3)}
    image = pack(tmp_path, files)
    tensors = image.tensors()
    assert list(tensors) == ["t1", "t2", "t3"]
    assert bytes(tensors["t3"].raw) == b"\x03"
    assert len(tensors.shards) == 3


def test_missing_shards_are_named(tmp_path: Path) -> None:
    image = pack(tmp_path, {"model-00002-of-00003.safetensors": safetensors("t2")})
    with pytest.raises(daxfs.FormatError, match="2 of 3 shards are missing.*00001, 00003"):
        image.tensors()


def test_did_you_mean(tmp_path: Path) -> None:
    image = pack(tmp_path, {"model.safetensors": safetensors("model.embed.weight"), "sub/config.json": b"{}"})
    with pytest.raises(daxfs.NotFoundError, match="did you mean model.embed.weight"):
        image.tensors()["embed.weight"]
    with pytest.raises(KeyError, match="did you mean /sub/config.json"):
        image["config.json"]
    assert "embed.weight" not in image.tensors()


def test_what_is_no_image_is_called_what_it_is(tmp_path: Path) -> None:
    def opening(name: str, contents: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(contents)
        with pytest.raises(daxfs.FormatError) as caught:
            daxfs.open(path)
        return str(caught.value)

    assert "a safetensors file; pack it: `daxfs-pack" in opening("model.safetensors", safetensors("w"))
    assert "a GGUF file; pack it: `daxfs-pack" in opening("model.gguf", b"GGUF\x03\0\0\0" + bytes(5000))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    assert "a git-lfs pointer; the file itself was not downloaded: run `git lfs pull`" in opening("w.bin", pointer)
    assert "a gzip file; decompress it" in opening("w.gz", b"\x1f\x8b\x08\0" + bytes(100))
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(daxfs.FormatError, match="a zip archive, as torch.save writes; `daxfs-pack"):
        daxfs.open(tmp_path / "w.pt")
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        archive.add(tmp_path / "w.gz", "w.gz")
    with pytest.raises(daxfs.FormatError, match=r"a tar archive; pack what is in it: `daxfs-pack tar:FILE"):
        daxfs.open(tmp_path / "w.tar")
    with pytest.raises(daxfs.SourceError, match=r"it is a directory; `daxfs-pack DIR -o IMAGE.daxfs` packs it"):
        daxfs.open(tmp_path)
