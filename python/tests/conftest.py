"""Source trees and images that the tests share; nothing writes to them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import daxfs

from support import BITS, Spec, write_safetensors

ALL_DTYPES = {f"all.{dtype}": Spec.filled(dtype, (3, 8), seed) for seed, dtype in enumerate(BITS)}
ODD_SHAPES = {
    "odd.scalar": Spec.filled("F32", ()),
    "odd.empty": Spec.filled("F32", (0, 4)),
    "odd.bf16_empty": Spec.filled("BF16", (4, 0)),
    "odd.many_dims": Spec.filled("I16", (1, 2, 1, 3, 1, 2)),
    "odd.f4_last_odd": Spec.filled("F4", (2, 3)),
    "odd.unaligned_pad": Spec.filled("U8", (3,)),
    "odd.unaligned": Spec.filled("F32", (5,)),
}
METADATA = {"format": "pt", "note": "grüße"}
SHARDS = {
    "model-00001-of-00002.safetensors": {
        "embed.weight": Spec.filled("BF16", (16, 8), 1),
        "layers.0.norm": Spec.filled("F32", (8,), 2),
    },
    "model-00002-of-00002.safetensors": {
        "layers.0.scale": Spec.filled("F8_E8M0", (8,), 3),
        "lm_head.weight": Spec.filled("F8_E4M3", (16, 8), 4),
    },
}
LARGE = 3 << 20


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree with one of everything."""
    root = tmp_path_factory.mktemp("tree")
    (root / "config.json").write_text('{"hidden_size": 8}')
    (root / "empty").touch()
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "sub" / "deep" / "notes.txt").write_text("grüße\n")
    (root / "sub" / "large.bin").write_bytes(bytes(range(256)) * (LARGE // 256))
    (root / "void").mkdir()
    (root / "link.json").symlink_to("config.json")
    (root / "sub" / "up").symlink_to("../config.json")
    (root / "into").symlink_to("sub/deep")
    (root / "dangling").symlink_to("nowhere")
    os.link(root / "config.json", root / "hard.json")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.txt")).write_text("latin")
    write_safetensors(root / "model.safetensors", {**ALL_DTYPES, **ODD_SHAPES}, METADATA)
    (root / "config.json").chmod(0o640)
    return root


@pytest.fixture(scope="session")
def path(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as an image in a file."""
    path = tmp_path_factory.mktemp("image") / "tree.daxfs"
    daxfs.pack(tree, path)
    return path


@pytest.fixture
def image(path: Path) -> Iterator[daxfs.Image]:
    """The image, opened."""
    with daxfs.open(path) as image:
        yield image


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded checkpoint."""
    root = tmp_path_factory.mktemp("checkpoint")
    weight_map = {}
    for shard, tensors in SHARDS.items():
        write_safetensors(root / shard, tensors, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, shard))
    index = {"metadata": {"total_size": 100}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


ROOT = Path(__file__).parents[2]
FAKE_CUDA, HEADERS = ROOT / "tests" / "cuda" / "libcuda.c", ROOT / "crates" / "device" / "include"


def build_fake_cuda(folder: Path, *flags: str) -> Path:
    """Compile the simulated CUDA driver into a folder, which is for LD_LIBRARY_PATH."""
    compiler = os.environ.get("CC", "cc")  # Rust links with it, so whoever builds the package has it
    options = ["-std=gnu11", "-O1", "-shared", "-fPIC", "-pthread", "-I", HEADERS, *flags]
    subprocess.run([compiler, *options, "-o", folder / "libcuda.so.1", FAKE_CUDA], check=True)
    return folder


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the simulated CUDA driver."""
    return build_fake_cuda(tmp_path_factory.mktemp("cuda"))
