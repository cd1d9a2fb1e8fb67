"""daxfs.parallel: views of parts on the host, and daxfs.flax."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import daxfs
from daxfs import parallel

from support import Spec, write_safetensors

np = pytest.importorskip("numpy")


@pytest.fixture
def tensors(tmp_path: Path) -> Any:
    made = {
        "params.dense.kernel": Spec.filled("F32", (8, 6)),
        "params.dense.bias": Spec.filled("F32", (6,), 1),
        "stats.mean": Spec.filled("I16", (7,), 2),
        "packed": Spec.filled("F4", (4, 8), 3),
        **{f"layers.0.experts.{number}.w": Spec.filled("U8", (2,), number) for number in range(5)},
    }
    write_safetensors(tmp_path / "m.safetensors", made)
    daxfs.pack(tmp_path / "m.safetensors", tmp_path / "m.daxfs")
    return daxfs.open(tmp_path / "m.daxfs").tensors()


def test_shards_are_views_that_make_up_the_whole(tensors: Any) -> None:
    kernel = tensors["params.dense.kernel"]
    whole = kernel.numpy()
    for dim, world in ((0, 2), (0, 4), (1, 3), (-1, 2)):
        parts = [parallel.shard(kernel, dim, rank, world) for rank in range(world)]
        assert all(np.shares_memory(part, whole) for part in parts)
        assert np.array_equal(np.concatenate(parts, dim), whole)
    assert parallel.shard(tensors["packed"], 1, 1, 2).tolist() == tensors["packed"].numpy()[:, 2:].tolist()


def test_uneven_shards_are_those_of_torch_chunk(tensors: Any) -> None:
    torch = pytest.importorskip("torch")
    mean = tensors["stats.mean"].torch()
    with pytest.raises(ValueError, match="dimension 0 has 7 indices, no multiple of 3 ranks"):
        parallel.shard(mean, 0, 0, 3)
    for world in (2, 3, 4, 7):
        chunks = mean.chunk(world)
        for rank in range(world):
            part = parallel.shard(mean, 0, rank, world, uneven=True)
            assert torch.equal(part, chunks[rank] if rank < len(chunks) else mean[:0])
            assert not len(part) or part.untyped_storage().data_ptr() == mean.untyped_storage().data_ptr()
    assert parallel.shard(mean, 0, 8, 9, uneven=True).shape == (0,)


def test_lazy_values(tensors: Any) -> None:
    torch = pytest.importorskip("torch")
    from daxfs.torch import state_dict

    lazy = state_dict(tensors)["params.dense.kernel"]
    assert torch.equal(parallel.shard(lazy, 1, 1, 2), tensors["params.dense.kernel"].torch()[:, 3:])


def test_fused_tensors_are_cut_block_by_block() -> None:
    # Query of four heads, key and value of two, each of two rows.
    rows = np.arange(16).reshape(16, 1)
    blocks = [(8, 4), (4, 2), (4, 2)]
    for rank in range(2):
        query, key, value = parallel.shard_blocks(rows, 0, blocks, rank, 2)
        assert query[:, 0].tolist() == list(range(rank * 4, rank * 4 + 4))
        assert key[:, 0].tolist() == [8 + rank * 2, 9 + rank * 2]
        assert value[:, 0].tolist() == [12 + rank * 2, 13 + rank * 2]
        assert all(np.shares_memory(part, rows) for part in (query, key, value))
    # More ranks than heads of keys: two have the same one.
    keys = [parallel.shard_blocks(rows, 0, blocks, rank, 4)[1][:, 0].tolist() for rank in range(4)]
    assert keys == [[8, 9], [8, 9], [10, 11], [10, 11]]
    gate, up = parallel.shard_blocks(rows, 0, [8, 8], 1, 2)
    assert (gate[0, 0], up[0, 0]) == (4, 12)


@pytest.mark.parametrize(
    ("blocks", "world", "why"),
    [
        ([8, 4], 2, "the blocks have 8 + 4 = 12 indices, dimension 0 has 16"),
        ([(16, 3)], 2, "a block of 16 indices in 3 heads cannot be divided among 2 ranks"),
        ([(16, 0)], 2, "a block of 16 indices in 0 heads"),
        ([(16, 2)], 3, "a block of 16 indices in 2 heads cannot be divided among 3 ranks"),
    ],
)
def test_blocks_that_do_not_fit(blocks: Any, world: int, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parallel.shard_blocks(np.arange(16), 0, blocks, 0, world)


def test_ranks_and_dimensions_that_are_not_there() -> None:
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"rank {rank} is none of {world}"):
            parallel.shard(np.arange(4), 0, rank, world)
    for dim in (1, -2):
        with pytest.raises(IndexError, match=f"there is no dimension {dim}"):
            parallel.shard(np.arange(4), dim, 0, 2)


def test_experts(tensors: Any) -> None:
    for count, world in ((8, 4), (5, 2), (3, 4), (0, 2)):
        ranges = [parallel.experts(count, rank, world) for rank in range(world)]
        assert [expert for own in ranges for expert in own] == list(range(count))
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    own = parallel.local_experts(tensors, 1, 2)
    others = {name for name in tensors if "experts" not in name}
    assert own.keys() == others | {"layers.0.experts.3.w", "layers.0.experts.4.w"}
    assert parallel.local_experts(tensors, 6, 7).keys() == others
    assert parallel.local_experts({"a": 1}, 1, 2) == {"a": 1}


def test_flax_variables(tensors: Any, tmp_path: Path) -> None:
    pytest.importorskip("jax")
    from daxfs.flax import load_variables

    variables = load_variables(tensors)
    kernel = variables["params"]["dense"]["kernel"]
    array = tensors["params.dense.kernel"].numpy()
    assert kernel.unsafe_buffer_pointer() == array.ctypes.data
    assert np.array_equal(kernel, array)
    assert variables["params"]["dense"]["bias"].shape == (6,)
    assert load_variables(tmp_path / "m.daxfs", collection="params")["params"]["stats"]["mean"].shape == (7,)
    flat = load_variables(f"{tmp_path}/m.daxfs!/m.safetensors", separator="/")
    assert flat.keys() == tensors.keys()


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a")])
def test_names_that_lie_below_tensors(names: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip("jax")
    from daxfs.flax import load_variables

    write_safetensors(tmp_path / "m.safetensors", {name: Spec.filled("U8", (1,)) for name in names})
    daxfs.pack(tmp_path / "m.safetensors", tmp_path / "m.daxfs")
    with pytest.raises(ValueError, match="another separator than '.'"):
        load_variables(tmp_path / "m.daxfs")
