"""What ``dtype`` is where numpy, or the package that has the type, is not installed."""

from __future__ import annotations


class DtypeName(str):
    """numpy's name of a type, with the attributes of a ``numpy.dtype`` that need no numpy."""

    __slots__ = ("itemsize",)

    itemsize: int

    def __new__(cls, name: str, itemsize: int) -> DtypeName:
        """Make the name of a type whose elements have so many bytes."""
        made = super().__new__(cls, name)
        made.itemsize = itemsize
        return made

    @property
    def name(self) -> str:
        """The name, as ``numpy.dtype.name``: ``getattr(torch, tensor.dtype.name)`` is torch's type."""
        return str(self)

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]
        return str(self), self.itemsize
