"""Parts of tensors for the ranks of a model that is spread: views of the host's memory, as plans give them to GPUs.

    w = daxfs.open("daxfs://llama").tensors()["model.layers.0.mlp.gate_proj.weight"]
    part = daxfs.parallel.shard(w, 0, rank, world)  # an array of numpy; of w.torch() a tensor of torch

Whatever has a shape and is indexed can be cut: tensors of images, arrays of numpy, tensors of torch, and the lazy
values of daxfs.torch.state_dict and safe_open.get_slice, of which nothing else is taken then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union

import daxfs

_T = TypeVar("_T")

# The rows of a block, or these and in how many heads they are.
Block = Union[int, tuple[int, int]]

_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def shard(value: Any, dim: int, rank: int, world: int, *, uneven: bool = False) -> Any:
    """Return a rank's range of one dimension: a view.

    The size must be a multiple of the number of ranks. With uneven each has size / world rounded up, and the last ones
    less, or nothing, as torch.chunk counts and as plans do.
    """
    _check(rank, world)
    value, size, dim = _cut(value, dim)
    if size % world and not uneven:
        msg = f"dimension {dim} has {size} indices, no multiple of {world} ranks: uneven=True allows that"
        raise ValueError(msg)
    step = -(-size // world)
    return _part(value, dim, min(rank * step, size), min((rank + 1) * step, size))


def shard_blocks(value: Any, dim: int, blocks: Sequence[Block], rank: int, world: int) -> list[Any]:
    """Return a rank's ranges of tensors that are stored as one, such as query, key and value: a view of each.

    blocks: the sizes in their order, or (size, heads). Where ranks outnumber heads, several of them have the same one.
    """
    _check(rank, world)
    value, size, dim = _cut(value, dim)
    sizes = [block if isinstance(block, int) else block[0] for block in blocks]
    if sum(sizes) != size:
        msg = f"the blocks have {' + '.join(map(str, sizes))} = {sum(sizes)} indices, dimension {dim} has {size}"
        raise ValueError(msg)
    parts = []
    start = 0
    for block, length in zip(blocks, sizes):
        heads = length if isinstance(block, int) else block[1]
        # How many different parts there are, and how many ranks have each.
        count = min(heads, world)
        if heads < 1 or heads % count or world % count or length % heads:
            msg = f"a block of {length} indices in {heads} heads cannot be divided among {world} ranks"
            raise ValueError(msg)
        step = length // count
        first = start + rank // (world // count) * step
        parts.append(_part(value, dim, first, first + step))
        start += length
    return parts


def experts(count: int, rank: int, world: int) -> range:
    """Return the experts of a rank: neighbours, the first ranks with one more where they do not divide."""
    _check(rank, world)
    least, rest = divmod(count, world)
    start = rank * least + min(rank, rest)
    return range(start, start + least + (rank < rest))


def local_experts(tensors: Mapping[str, _T], rank: int, world: int) -> dict[str, _T]:
    """Return the tensors without those of other ranks' experts, which have ".experts.N." in their names."""
    numbers = {name: int(found[1]) for name in tensors if (found := _EXPERT.search(name))}
    own = experts(max(numbers.values(), default=-1) + 1, rank, world)
    return {
        name: value for name, value in tensors.items() if numbers.get(name, own.start) in own or name not in numbers
    }


def _check(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        msg = f"rank {rank} is none of {world}: they are numbers from 0"
        raise ValueError(msg)


def _cut(value: Any, dim: int) -> tuple[Any, int, int]:
    """Return what is indexed, the size of a dimension of it, and the number of that from 0."""
    if isinstance(value, daxfs.Tensor):
        # fp4 is in bytes, of which there are fewer.
        value = value.numpy()
    shape = value.get_shape() if hasattr(value, "get_shape") else value.shape
    if not -len(shape) <= dim < len(shape):
        msg = f"there is no dimension {dim} in the shape {list(shape)}"
        raise IndexError(msg)
    return value, shape[dim], dim % len(shape)


def _part(value: Any, dim: int, start: int, stop: int) -> Any:
    return value[(slice(None),) * dim + (slice(start, stop),)]


__all__ = ["Block", "experts", "local_experts", "shard", "shard_blocks"]
