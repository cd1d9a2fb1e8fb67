"""``safe_open.get_slice``: parts of a tensor."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Union

from daxfs.safetensors._errors import SafetensorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import daxfs
    from daxfs.safetensors._framework import Framework

_Part = Union[int, slice]


class SafeSlice:
    """A tensor whose parts are taken by indexing: ``s[:, 256:512]`` is a view where the framework has views."""

    __slots__ = ("_framework", "_tensor")

    def __init__(self, tensor: daxfs.Tensor, framework: Framework) -> None:
        self._tensor = tensor
        self._framework = framework

    def get_shape(self) -> list[int]:
        """Return the sizes of the dimensions."""
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """Return the name that safetensors has for the type: "F32"."""
        return self._tensor.dtype_name

    def __getitem__(self, index: Any) -> Any:
        return self._framework.part(self._tensor, index)


def checked(index: Any, shape: Sequence[int]) -> tuple[Any, ...]:
    """Return an index that numpy takes, after the rules of safetensors, which are narrower than numpy's."""
    if isinstance(index, list):
        if index:
            msg = "Non empty lists are not implemented"
            raise SafetensorError(msg)
        parts: list[_Part] = [slice(0, 0)]
        words = ["0:0"]
    else:
        given = index if isinstance(index, tuple) else (index,)
        parts, words = _parts(_expanded(given, len(shape)), shape)
    if len(parts) > len(shape):
        _refuse(words, shape, "more slicing indexes than dimensions in tensor")
    for axis, (part, size) in reversed(list(enumerate(zip(parts, shape)))):
        start, stop = _range(part, size)
        # safetensors refuses all parts of what is empty; the whole of it is here.
        if (start >= size or stop > size) and (size, start, stop) != (0, 0, 0):
            outside = start if start >= size else stop - 1
            _refuse(words, shape, f"index {outside} out of bounds for tensor dimension #{axis} of size {size}")
    # An array even where no dimension is left.
    return (*parts, ...)


def _expanded(given: tuple[Any, ...], ndim: int) -> list[Any]:
    dots = sum(part is ... for part in given)
    if dots > 1:
        msg = "Only one ellipsis (...) is allowed in slice index"
        raise SafetensorError(msg)
    expanded: list[Any] = []
    for part in given:
        if part is ...:
            expanded += [slice(None)] * max(ndim - len(given) + 1, 0)
        else:
            expanded.append(part)
    return expanded


def _parts(given: list[Any], shape: Sequence[int]) -> tuple[list[_Part], list[str]]:
    parts: list[_Part] = []
    words: list[str] = []
    for axis, part in enumerate(given):
        if isinstance(part, slice):
            step = 1 if part.step is None else operator.index(part.step)
            if step <= 0:
                msg = f"Slice step must be a positive integer, got {step}"
                raise SafetensorError(msg)
            start, stop = _unsigned(part.start), _unsigned(part.stop)
            parts.append(slice(start, stop, step))
            bounds = ("" if start is None else str(start)) + ":" + ("" if stop is None else str(stop))
            words.append(bounds if step == 1 else f"{bounds}:{step}")
            continue
        number = _integer(part)
        if number is None:
            msg = f"Unsupported slice index at position {axis}: expected slice, int, or ellipsis"
            raise SafetensorError(msg)
        if number < 0:
            size = shape[axis] if axis < len(shape) else 0
            if number + size < 0:
                msg = f"Invalid index {number} for dimension {axis} of size {size}"
                raise SafetensorError(msg)
            number += size
        parts.append(number)
        words.append(str(number))
    return parts, words


def _integer(part: Any) -> int | None:
    try:
        number = operator.index(part)
    except TypeError:
        return None
    return number if -(2**31) <= number < 2**31 else None


def _unsigned(bound: Any) -> int | None:
    if bound is None:
        return None
    number = operator.index(bound)
    if number < 0:
        msg = "can't convert negative int to unsigned"
        raise OverflowError(msg)
    if number >= 2**64:
        msg = "int too big to convert"
        raise OverflowError(msg)
    return number


def _range(part: _Part, size: int) -> tuple[int, int]:
    if isinstance(part, int):
        return part, part + 1
    return part.start or 0, size if part.stop is None else part.stop


def _refuse(words: list[str], shape: Sequence[int], why: str) -> None:
    msg = f"Error during slicing [{', '.join(words)}] with shape {list(shape)}: {why}"
    raise SafetensorError(msg)
