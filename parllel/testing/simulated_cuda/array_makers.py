"""The stand-ins for CuPy's functions that make arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from parllel.testing.simulated_cuda.active import current_stream
from parllel.testing.simulated_cuda.array import array_over, is_computable, ndarray
from parllel.testing.simulated_cuda.array_transfers import upload
from parllel.testing.simulated_cuda.errors import NotImitatedError
from parllel.testing.simulated_cuda.streams import get_current_stream


def empty(shape: int | tuple[int, ...], dtype: DTypeLike = float, order: str = "C") -> ndarray:
    """Stand in for cupy.empty: the bytes are poisoned."""
    return ndarray(shape, dtype, order=order)


def asarray(
    a: Any,
    dtype: DTypeLike | None = None,
    order: str | None = None,
    *,
    copy: bool | None = None,
    blocking: bool = False,
) -> ndarray:
    """Stand in for cupy.asarray: values of the host are copied in the current stream."""
    if copy is not None:
        raise NotImitatedError("asarray with `copy` is not imitated")
    if not isinstance(a, ndarray) and hasattr(a, "__cuda_array_interface__"):
        a = array_over(a)
    if isinstance(a, ndarray):
        return a if dtype is None else a.astype(dtype, copy=False)
    values = np.asarray(a, dtype, order="C")
    if not is_computable(values.dtype):
        raise ValueError(f"Unsupported dtype {values.dtype}")
    array = ndarray(values.shape, values.dtype)
    upload(values, array, current_stream())
    if blocking:
        get_current_stream().synchronize()
    return array


def may_share_memory(a: ndarray, b: ndarray, max_work: int | None = None) -> bool:
    """Stand in for cupy.may_share_memory: whether their spans meet. Waits for nothing."""
    return np.may_share_memory(a._values, b._values)
