"""Conversion of values between libraries, without importing libraries that are not in use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.cuda import AnyArray, DeviceArray
from parllel.storages import Side

if TYPE_CHECKING:
    import torch

# Classes of values that a NumPy assignment takes as they are. It is asked first, since all other
# questions about a value are slower.
PLAIN = frozenset(
    {
        np.ndarray, int, float, bool, list, tuple, np.bool_, np.uint8, np.int32, np.int64,
        np.float32, np.float64,
    }
)  # fmt: skip

_SCALARS = PLAIN - {np.ndarray, list, tuple}

_TENSORS: set[Any] = set()  # classes of torch's tensors that were seen

# The floats that NumPy and CuPy have, too.
_FLOATS = ("torch.float16", "torch.float32", "torch.float64")

_OF_OTHERS = 2  # numpy.dtype.isbuiltin of dtypes that another library registered

_NARROW = {
    "float64": np.float32,
    "int64": np.int32,
    "uint64": np.uint32,
    "complex128": np.complex64,
}


def side_of(value: object) -> Side:
    """Return the side that works on a value: "gpu" for device and managed memory of any library."""
    if isinstance(value, np.ndarray):
        return "host"
    side: Side | None = getattr(value, "side", None)
    if side is not None:
        return side
    return "gpu" if hasattr(value, "__cuda_array_interface__") else "host"


def to_host(value: Any) -> Any:  # Any: an array of NumPy, or what it takes as it is
    """Return a value that NumPy can use; a tensor or array on a device is copied to the host.

    That copy is made in the caller's current stream, and the host waits for the stream.
    """
    if value.__class__ in _TENSORS:  # first: an agent's results (bench/bench_sampling.py)
        try:
            return value.numpy()
        except (RuntimeError, TypeError):  # a gradient, a conjugation, or another device
            return _from_tensor(value)
    if value.__class__ in PLAIN:
        return value
    if is_tensor(value):
        _TENSORS.add(value.__class__)
        return to_host(value)
    if hasattr(value, "to_ndarray"):
        return value.to_ndarray()
    if hasattr(value, "__cuda_array_interface__"):
        return cuda.to_host(cuda.array_over(value))  # CuPy refuses an implicit conversion
    if hasattr(value, "__array__") or not hasattr(value, "__dlpack__"):
        return np.asarray(value)
    return np.from_dlpack(value)


def to_device(value: object) -> DeviceArray:
    """Return a value that CuPy can use. The host waits for nothing.

    A value of the host is copied to the device in the caller's current stream. Memory that a GPU
    can use is not copied: the caller's current stream waits for the stream that its owner names.
    """
    found = _for_gpu(value)
    return cuda.to_device(found) if isinstance(found, np.ndarray) else found


def put_on_device(value: object, *, out_device: DeviceArray) -> None:
    """Write a value of any library to an array of CuPy, in the caller's current stream.

    A value of the host that has the array's shape and dtype is written by one copy, without memory
    in between. The stream waits as in `to_device`.

    Args:
        value: value that broadcasts to the array's shape.
        out_device: array of CuPy, overwritten.

    Raises:
        RuntimeError: the array, or the value, is memory of another device than the current one.
        ValueError: the value's shape does not broadcast.
    """
    cuda.check_current(out_device)
    with cuda.use_stream():
        found = _for_gpu(value)
        if not isinstance(found, np.ndarray):
            if cuda.is_device_array(found):
                cuda.check_current(found)
            out_device[...] = apart_from(out_device, found)
            return
        flags = out_device.flags
        is_alike = (found.shape, found.dtype) == (out_device.shape, out_device.dtype)
        if is_alike and found.size and (flags.c_contiguous or flags.f_contiguous):
            cuda.copy_to_device(found, out_device=out_device)
        else:
            out_device[...] = cuda.to_device(found)


def apart_from(written: DeviceArray, value: DeviceArray) -> DeviceArray:
    """Return a value that can be written to an array of CuPy: a copy where the two share bytes.

    A GPU copies elements in no order, so that shared bytes could be written before they are read.
    """
    return value.copy() if may_share_memory(value, written) else value


def may_share_memory(one: AnyArray, other: AnyArray) -> bool:
    """Whether two arrays of NumPy, or two of CuPy, may have bytes in common."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.may_share_memory(one, other)
    are_on_device = cuda.is_device_array(one) and cuda.is_device_array(other)
    return are_on_device and cuda.may_share_memory(one, other)


def _for_gpu(value: object) -> AnyArray:
    """Return a value as a scalar, as a CuPy array where a GPU can use it, else as a NumPy array."""
    if value.__class__ in _SCALARS:
        return value
    if is_tensor(value):
        return cuda.array_over(plain(value)) if value.is_cuda else to_host(value)
    if hasattr(value, "to_cupy") and getattr(value, "is_for_gpu", False):
        return value.to_cupy()
    if hasattr(value, "__cuda_array_interface__"):
        return cuda.array_over(value)
    return np.asarray(to_host(value))


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same values, without a gradient or a pending conjugation or sign.

    NumPy and CuPy have neither bfloat16 nor shorter floats; these become float32, which is exact.
    """
    values = tensor.detach().resolve_conj().resolve_neg()
    is_short = values.is_floating_point() and str(values.dtype) not in _FLOATS
    return values.float() if is_short else values


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a value is a torch tensor. The question does not import torch."""
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, module.Tensor)


def to_tensor(data: NDArray[Any]) -> torch.Tensor:
    """Return a torch tensor over the same memory.

    The short floats of other libraries (bfloat16 and float8 of JAX) become torch's own.

    Raises:
        ValueError: a stride is negative or no multiple of the elements' size, which torch does not
            have.
        TypeError: torch does not have the dtype, or not in this byte order.
    """
    import torch

    dtype = data.dtype
    if not dtype.isnative:
        raise TypeError(
            f"to_torch: got dtype {dtype.str}, in another byte order than this machine's, which"
            " torch does not have; convert to_ndarray() with .astype(dtype.newbyteorder('='))"
        )
    short = _short_float(dtype)
    try:
        if short is None:
            return torch.from_numpy(data)
        return torch.from_numpy(data.view(f"i{dtype.itemsize}")).view(short)
    except ValueError as error:
        raise ValueError(
            f"to_torch: torch can't share strides {data.strides} of {dtype.itemsize} bytes each"
            f" ({error}); index with a positive step, or copy the values with"
            " torch.tensor(array.to_ndarray().copy())"
        ) from error
    except TypeError as error:
        raise TypeError(
            f"to_torch: torch has no dtype {dtype}; convert to_ndarray() with .astype"
        ) from error


def _short_float(dtype: np.dtype[Any]) -> torch.dtype | None:
    """Return torch's dtype for a float that another library registered with NumPy."""
    if dtype.isbuiltin != _OF_OTHERS:
        return None
    import torch

    found = getattr(torch, dtype.name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        return None
    return found if found.itemsize == dtype.itemsize else None


def flat_rows(values: AnyArray) -> AnyArray:
    """Return the rows of an array with T and B taken together, [T * B, ...], C-contiguous.

    Args:
        values: [T, B, ...], an array of NumPy or CuPy. Where it is not contiguous, the result is a
            copy, on a GPU made in the caller's current stream.
    """
    shape = values.shape[0] * values.shape[1], *values.shape[2:]
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values.reshape(shape))
    cuda.check_current(values)
    with cuda.use_stream():
        rows = values.reshape(shape)
        return rows if rows.flags.c_contiguous else rows.copy()


def narrow(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of half the size for a 64-bit dtype, and any other dtype as it is."""
    return np.dtype(_NARROW.get(dtype.name, dtype))


def _from_tensor(tensor: torch.Tensor) -> NDArray[Any]:
    try:
        return tensor.numpy(force=True)
    except TypeError:
        return plain(tensor).numpy(force=True)


def describe(value: object) -> str:
    """Return the words of error messages for a value that could not be written."""
    try:
        shape = value.shape if hasattr(value, "shape") else np.asarray(value).shape
        return f"a value of shape {tuple(shape)}"
    except ValueError:  # a ragged list
        return "a list of lists of different lengths"
