"""DeviceRows: where rows of any library lie in memory that a GPU can use, without a copy."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from parllel import cuda
from parllel.arrays.interop import is_tensor

if TYPE_CHECKING:
    import torch


_NUMPYS_OWN = 1  # numpy.dtype.isbuiltin; others may have registered a bfloat16


class DeviceRows(NamedTuple):
    """The place and form of an array that a kernel can read where it lies.

    Args:
        address: where the first element lies, as the device sees it.
        shape: lengths of the axes.
        strides: bytes from one element to the next, on each axis.
        dtype: type of the elements.
        device: number of the device.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int


def locate_rows(value: Any) -> DeviceRows | None:  # Any: a value of any library
    """Return where a value lies in memory that a GPU can use; None for all that needs a conversion.

    It knows arrays of CuPy, Arrays, and tensors of torch, with a gradient too. The result keeps
    nothing alive. Work that reads the memory belongs to the stream that has written it.
    """
    if is_tensor(value):
        return _locate_tensor(value) if value.is_cuda else None
    if not cuda.is_device_array(value):
        if not getattr(value, "is_for_gpu", False) or value.is_gathered:
            return None
        value = value.to_cupy()
    pointer = value.data
    return DeviceRows(pointer.ptr, value.shape, value.strides, value.dtype, pointer.device_id)


def _locate_tensor(tensor: torch.Tensor) -> DeviceRows | None:
    dtype = _numpys(tensor.dtype)
    if dtype is None or tensor.is_conj() or tensor.is_neg() or tensor.layout != _strided():
        return None
    strides = tuple(step * dtype.itemsize for step in tensor.stride())
    return DeviceRows(tensor.data_ptr(), tuple(tensor.shape), strides, dtype, tensor.get_device())


@functools.cache
def _numpys(dtype: torch.dtype) -> np.dtype[Any] | None:
    """Return NumPy's dtype of a tensor's elements; None for torch's short floats and others."""
    name = str(dtype).removeprefix("torch.")
    try:
        found = np.dtype(name)
    except TypeError:
        return None
    return found if found.isbuiltin == _NUMPYS_OWN else None


@functools.cache
def _strided() -> torch.layout:
    import torch

    return torch.strided
