"""The stand-ins for CuPy's functions that make arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from parllel.testing.simulated_cuda.active import current_stream
from parllel.testing.simulated_cuda.array import array_over, is_computable, ndarray
from parllel.testing.simulated_cuda.array_transfers import upload
from parllel.testing.simulated_cuda.engine import LEGACY
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


def from_dlpack(array: Any, *, device: Any = None, copy: bool | None = None) -> ndarray:
    """Stand in for cupy.from_dlpack: an array over device memory that another library shows.

    The library is asked to order its work before that in CuPy's current stream.
    """
    if device is not None or copy is not None:
        raise NotImitatedError("from_dlpack with `device` or `copy` is not imitated")
    return array_over(_Shown(np.from_dlpack(_Ordered(array, current_stream() or LEGACY))))


class _Ordered:
    """What NumPy asks for memory, which is asked of the owner for a stream."""

    def __init__(self, owner: Any, stream: int) -> None:
        self._owner = owner
        self._stream = stream

    def __dlpack__(self, **kwargs: Any) -> Any:
        kwargs.pop("dl_device", None)
        return self._owner.__dlpack__(**{**kwargs, "stream": self._stream})

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # kDLCPU: see `to_dlpack`


class _Shown:
    """Device memory as NumPy sees it, by the CUDA array interface."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values  # they keep the owner's memory alive
        interface = values.__array_interface__
        names = "shape", "strides", "typestr", "data"
        self.__cuda_array_interface__ = {name: interface[name] for name in names} | {"version": 3}


def may_share_memory(a: ndarray, b: ndarray, max_work: int | None = None) -> bool:
    """Stand in for cupy.may_share_memory: whether their spans meet. Waits for nothing."""
    return np.may_share_memory(a._values, b._values)
