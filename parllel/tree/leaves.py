"""What a tree does with one leaf, whatever library the leaf comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array, Leaf
from parllel.arrays.interop import is_tensor, to_host, to_tensor

if TYPE_CHECKING:
    import torch


def as_ndarray(leaf: Leaf) -> NDArray[Any]:
    """Return a leaf as a NumPy array, over the same memory where the host can read it.

    For memory of a device it is a copy, for which the host waits (`Array.to_ndarray`).
    """
    if isinstance(leaf, Array):
        return leaf.to_ndarray()
    values = np.asarray(to_host(leaf))
    if not isinstance(leaf, np.ndarray) and hasattr(leaf, "__cuda_array_interface__"):
        values.flags.writeable = False  # a copy: a write would be lost
    return values


def as_tensor(leaf: Leaf) -> torch.Tensor:
    """Return a leaf as a torch tensor over the same memory. Waits for nothing."""
    if isinstance(leaf, Array):
        return leaf.to_torch()
    if is_tensor(leaf):
        return leaf
    if cuda.is_device_array(leaf):
        return cuda.tensor_over(leaf)
    if isinstance(leaf, np.ndarray) or not hasattr(leaf, "__dlpack__"):
        return to_tensor(np.asarray(leaf))
    from torch.utils.dlpack import from_dlpack

    return from_dlpack(leaf)  # by way of NumPy, JAX arrays would be read-only, and torch would warn


def describe_leaf(leaf: object) -> tuple[str, str, str, str]:
    """Return a leaf's dtype, shape, storage (or device) and the bytes that it holds."""
    where = getattr(leaf, "storage", None) if isinstance(leaf, Array) else _device(leaf)
    nbytes = leaf.allocated_nbytes if isinstance(leaf, Array) else getattr(leaf, "nbytes", 0)
    shape = tuple(getattr(leaf, "shape", ()))
    return str(getattr(leaf, "dtype", type(leaf).__name__)), str(shape), str(where), f"{nbytes:,}"


def empty_rows(leaf: Leaf, n_rows: int) -> NDArray[Any]:
    """Return a new NumPy array with rows like those of a leaf; its values are not set.

    Args:
        leaf: array [m, ...], the example of the rows.
        n_rows: number of rows of the new array.
    """
    return np.empty((n_rows, *leaf.shape[1:]), leaf.dtype)


def call(leaf: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    """Call a leaf, as one of `tree.mean`, a tree of bound methods."""
    return leaf(*args, **kwargs)


def call_method(leaf: object, name: str, *args: object, **kwargs: object) -> Any:
    """Call a leaf's method."""
    return getattr(leaf, name)(*args, **kwargs)


def _device(leaf: object) -> str:
    return "local" if isinstance(leaf, np.ndarray) else str(getattr(leaf, "device", "-"))
