"""How a device array's values come from the host, go to it, and are shown to other libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parllel.testing.simulated_cuda.active import current_stream, device
from parllel.testing.simulated_cuda.engine import LEGACY
from parllel.testing.simulated_cuda.errors import NotImitatedError
from parllel.testing.simulated_cuda.host_values import HostValues
from parllel.testing.simulated_cuda.torch_order import check_torch_is_in_order

if TYPE_CHECKING:
    from parllel.testing.simulated_cuda.array import ndarray

_HOST = (1, 0)  # kDLCPU


def upload(source: Any, target: ndarray, stream: int) -> None:
    """Queue a copy from the host."""
    if not isinstance(source, np.ndarray):
        raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
    if target.dtype != source.dtype:
        raise TypeError(f"{source.dtype} array cannot be set to {target.dtype} array")
    if target.shape != source.shape:
        raise ValueError(f"Shape mismatch. Old shape: {target.shape}, new shape: {source.shape}")
    flags = target.flags
    if not flags.c_contiguous and not flags.f_contiguous:
        raise RuntimeError("Cannot set to non-contiguous array")
    contiguous = np.ascontiguousarray if flags.c_contiguous else np.asfortranarray
    values, seen = HostValues(contiguous(source).reshape(source.shape)), target._values
    engine = device().engine
    engine.counters.copies_to_device += 1
    engine.counters.bytes_to_device += source.nbytes
    name = f"a copy of {source.nbytes:,} bytes to the device"
    checks = (*target._checks, *values.checks)
    engine.queue(stream, name, lambda: np.copyto(seen, values.read()), checks=checks)


def download(source: ndarray, out: Any, stream: int, *, blocking: bool) -> NDArray[Any]:
    """Queue a copy to the host, and wait for it unless it goes to page-locked memory."""
    if not isinstance(out, np.ndarray):
        raise TypeError("Only numpy.ndarray can be obtained fromcupy.ndarray")  # CuPy's words
    if source.dtype != out.dtype:
        raise TypeError(f"{out.dtype} array cannot be obtained from {source.dtype} array")
    if source.shape != out.shape:
        raise ValueError(
            f"Shape mismatch. Expected shape: {source.shape}, actual shape: {out.shape}"
        )
    if not out.flags.c_contiguous and not out.flags.f_contiguous:
        raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")
    if not (source.flags.c_contiguous or source.flags.f_contiguous):
        source = source.copy()  # in the current stream, whatever the stream of the copy is
    engine, seen = device().engine, source._values
    engine.counters.copies_to_host += 1
    engine.counters.bytes_to_host += out.nbytes
    locked = device().memory.find_locked(out)
    checks = source._checks if locked is None else (*source._checks, locked.check)
    name = f"a copy of {out.nbytes:,} bytes to the host"
    copy = engine.queue(stream, name, lambda: np.copyto(out, seen), checks=checks)
    if blocking or locked is None:
        engine.counters.stream_synchronizations += 1
        engine.wait(copy)
    return out


def array_interface(array: ndarray) -> dict[str, Any]:
    """Return version 3 of the CUDA array interface, with the current stream."""
    return {
        "shape": array.shape,
        "typestr": array.dtype.str,
        "descr": array.dtype.descr,
        "stream": current_stream() or LEGACY,
        "version": 3,
        "strides": None if array.flags.c_contiguous else array.strides,
        "data": (array.data.ptr if array.size else 0, False),
    }


def to_dlpack(
    array: ndarray,
    stream: Any,
    max_version: tuple[int, int] | None,
    dl_device: tuple[int, int] | None,
    copy: bool | None,
) -> Any:
    """Return a DLPack capsule of host memory: torch's CPU tensors stand for those of a GPU.

    A stream that is given is made to wait for the current one, as CuPy does it. None is taken
    for the host itself, which gets no order here: `torch_order` gives it to torch.
    """
    if stream is not None and (not isinstance(stream, int) or stream < -1 or stream == 0):
        raise ValueError(
            "On CUDA, the valid stream for the DLPack protocol is -1, 1, 2, or any larger value,"
            f" but {stream} was provided"
        )
    if dl_device == _HOST and copy is not False and stream is None:
        return array.get().__dlpack__(max_version=max_version)
    if copy:
        raise NotImitatedError("__dlpack__ with a copy on the device is not imitated")
    if stream is not None and stream > 0 and stream != (current_stream() or LEGACY):
        engine = device().engine
        mark = engine.queue(current_stream(), "an event of __dlpack__")
        engine.queue(stream, "a wait of __dlpack__", after=mark)
    check_torch_is_in_order(device())
    return np.asarray(_Shared(array)).__dlpack__(max_version=max_version)


class _Shared:
    """The values as NumPy sees them; they keep the device memory alive."""

    def __init__(self, array: ndarray) -> None:
        self._array = array
        self.__array_interface__ = array._values.__array_interface__
