"""How values of other libraries come in and go out, without importing those libraries."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from parllel import cuda

if TYPE_CHECKING:
    import torch

# What a NumPy assignment takes as it is: asked before anything slower.
PLAIN = frozenset(
    {
        np.ndarray, int, float, bool, list, tuple, np.bool_, np.uint8, np.int32, np.int64,
        np.float32, np.float64,
    }
)  # fmt: skip

SCALARS = PLAIN - {np.ndarray, list, tuple}

_NARROW = {
    "float64": np.float32,
    "int64": np.int32,
    "uint64": np.uint32,
    "complex128": np.complex64,
}


def to_host(value: Any) -> Any:
    """Return a value as NumPy takes it: tensors and arrays of any device come to the host."""
    if value.__class__ in PLAIN:
        return value
    if is_tensor(value):
        return _from_tensor(value)
    if hasattr(value, "to_ndarray"):
        return value.to_ndarray()
    if hasattr(value, "__cuda_array_interface__"):
        return cuda.to_host(value)  # CuPy refuses an implicit conversion
    if hasattr(value, "__array__") or not hasattr(value, "__dlpack__"):
        return np.asarray(value)
    return np.from_dlpack(value)


def to_device(value: Any) -> Any:
    """Return a value as CuPy takes it. Values of the host are copied in the current stream."""
    if value.__class__ in SCALARS:
        return value
    if hasattr(value, "__cuda_array_interface__"):
        return cuda.library().asarray(value.detach() if is_tensor(value) else value)
    return cuda.to_device(to_host(value))


def is_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether a value is a torch tensor. Asking does not import torch."""
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, module.Tensor)


def to_tensor(data: NDArray[Any]) -> torch.Tensor:
    """Return a torch tensor over the same memory.

    Raises:
        ValueError: torch knows no negative strides.
        TypeError: torch has no such dtype.
    """
    import torch

    try:
        return torch.from_numpy(data)
    except ValueError as error:
        raise ValueError(
            f"to_torch: torch can't share strides {data.strides}; index with a positive step, or"
            " copy the values with torch.tensor(array.to_ndarray().copy())"
        ) from error


def narrow(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the 32-bit counterpart of a 64-bit dtype, and any other dtype as it is."""
    return np.dtype(_NARROW.get(dtype.name, dtype))


def _from_tensor(tensor: torch.Tensor) -> NDArray[Any]:
    try:
        return tensor.numpy()
    except (RuntimeError, TypeError):  # it has a gradient, is conjugated, or on another device
        pass
    try:
        return tensor.numpy(force=True)
    except TypeError:  # NumPy has no bfloat16; widening to float32 is exact
        return tensor.float().numpy(force=True)
