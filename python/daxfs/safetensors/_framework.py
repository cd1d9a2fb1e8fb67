"""What tensors become in each framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from daxfs.safetensors._slice import checked

if TYPE_CHECKING:
    import daxfs


class Framework(Protocol):
    """How a framework takes tensors."""

    def whole(self, tensor: daxfs.Tensor, /) -> Any:
        """Return a tensor in the framework's type."""

    def part(self, tensor: daxfs.Tensor, index: Any, /) -> Any:
        """Return a part of it."""


class Torch:
    """Tensors of torch: views on the CPU, copies on other devices."""

    def __init__(self, device: str | int, copy: bool) -> None:
        self._device = None if device == "cpu" else device
        self._copy = copy

    def whole(self, tensor: daxfs.Tensor) -> Any:
        """Return the whole tensor."""
        return self._placed(tensor.torch())

    def part(self, tensor: daxfs.Tensor, index: Any) -> Any:
        """Index as torch does; only what is taken is copied to a device."""
        return self._placed(tensor.torch()[index])

    def _placed(self, made: Any) -> Any:
        if self._device is not None:
            return made.to(self._device)
        return made.clone() if self._copy else made


class Numpy:
    """Arrays of numpy: views."""

    def __init__(self, copy: bool) -> None:
        self._copy = copy

    def whole(self, tensor: daxfs.Tensor) -> Any:
        """Return the whole tensor."""
        array = tensor.numpy()
        return array.copy() if self._copy else array

    def part(self, tensor: daxfs.Tensor, index: Any) -> Any:
        """Index as safetensors does."""
        array = tensor.numpy()
        part = array[checked(index, array.shape)]
        return part.copy() if self._copy else part


class Jax:
    """Arrays of JAX: views of what lies on 64 bytes, copies of parts."""

    def __init__(self, copy: bool) -> None:
        self._copy = copy

    def whole(self, tensor: daxfs.Tensor) -> Any:
        """Return the whole tensor."""
        import jax.numpy  # noqa: PLC0415

        return jax.numpy.array(tensor) if self._copy else jax_array(tensor)

    def part(self, tensor: daxfs.Tensor, index: Any) -> Any:
        """Copy what is indexed as safetensors does, and no more."""
        import jax.numpy  # noqa: PLC0415

        array = tensor.numpy()
        return jax.numpy.array(array[checked(index, array.shape)])


def jax_array(tensor: daxfs.Tensor) -> Any:
    """Return JAX's array of a tensor: a view, but for fp4 and fp6, which are copied as bytes."""
    import jax.numpy  # noqa: PLC0415

    return jax.numpy.asarray(tensor) if tensor.dtype_name.startswith(("F4", "F6")) else tensor.jax()


# The names that safetensors has for a framework.
TORCH = ("pt", "torch", "pytorch")
NUMPY = ("np", "numpy")
JAX = ("jax", "flax")
