"""How a device array's values come from the host, go to it, and are shown to other libraries."""

from __future__ import annotations

from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from parllel.testing.simulated_cuda.active import current_stream, machine
from parllel.testing.simulated_cuda.allocators import MemoryPointer
from parllel.testing.simulated_cuda.engine import LEGACY
from parllel.testing.simulated_cuda.errors import NotImitatedError
from parllel.testing.simulated_cuda.host_values import Check, HostValues
from parllel.testing.simulated_cuda.streams import is_capturing
from parllel.testing.simulated_cuda.torch_order import check_torch_is_in_order

_HOST = (1, 0)  # kDLCPU


class Transferable(Protocol):
    """A device array, as far as a transfer needs to know it."""

    _values: NDArray[Any]  # the memory as NumPy sees it

    @property
    def _checks(self) -> tuple[Check, ...]:
        """Raise, when they are called, unless the memory may be used."""

    @property
    def data(self) -> MemoryPointer:
        """Pointer to the first element."""

    def copy(self) -> Self:
        """Return a contiguous copy, made in the current stream."""

    def get(self) -> NDArray[Any]:
        """Return a copy on the host, which waits for it."""


def upload(source: object, target: Transferable, stream: int) -> None:
    """Queue a copy from the host."""
    if not isinstance(source, np.ndarray):
        raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
    seen = target._values
    if seen.dtype != source.dtype:
        raise TypeError(f"{source.dtype} array cannot be set to {seen.dtype} array")
    if seen.shape != source.shape:
        raise ValueError(f"Shape mismatch. Old shape: {seen.shape}, new shape: {source.shape}")
    if not seen.flags.c_contiguous and not seen.flags.f_contiguous:
        raise RuntimeError("Cannot set to non-contiguous array")
    contiguous = np.ascontiguousarray if seen.flags.c_contiguous else np.asfortranarray
    values = HostValues(contiguous(source).reshape(source.shape))
    engine = machine().engine
    _check_not_capturing(stream)
    engine.counters.copies_to_device += 1
    engine.counters.bytes_to_device += source.nbytes
    name = f"a copy of {source.nbytes:,} bytes to the device"
    checks = (*target._checks, *values.checks)
    engine.queue(stream, name, lambda: np.copyto(seen, values.read()), checks=checks)


def download(source: Transferable, out: object, stream: int, *, blocking: bool) -> NDArray[Any]:
    """Queue a copy to the host, and wait for it unless it goes to page-locked memory."""
    if not isinstance(out, np.ndarray):
        raise TypeError("Only numpy.ndarray can be obtained fromcupy.ndarray")  # CuPy's words
    seen = source._values
    if seen.dtype != out.dtype:
        raise TypeError(f"{out.dtype} array cannot be obtained from {seen.dtype} array")
    if seen.shape != out.shape:
        raise ValueError(f"Shape mismatch. Expected shape: {seen.shape}, actual shape: {out.shape}")
    if not out.flags.c_contiguous and not out.flags.f_contiguous:
        raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")
    if not (seen.flags.c_contiguous or seen.flags.f_contiguous):
        source = source.copy()  # in the current stream, whatever the stream of the copy is
        seen = source._values
    engine = machine().engine
    _check_not_capturing(stream)
    engine.counters.copies_to_host += 1
    engine.counters.bytes_to_host += out.nbytes
    locked = machine().memory.find_locked(out)
    checks = source._checks if locked is None else (*source._checks, locked.check)
    name = f"a copy of {out.nbytes:,} bytes to the host"
    copy = engine.queue(stream, name, lambda: np.copyto(out, seen), checks=checks)
    if blocking or locked is None:
        engine.counters.stream_synchronizations += 1
        engine.wait(copy)
    return out


def _check_not_capturing(stream: int) -> None:
    """Raise as CuPy does, which copies nothing between host and device while it is captured."""
    if is_capturing(stream):
        raise RuntimeError(
            "the current stream is capturing, so synchronous API calls are disallowed"
        )


def array_interface(array: Transferable) -> dict[str, Any]:
    """Return version 3 of the CUDA array interface, with the current stream."""
    values = array._values
    return {
        "shape": values.shape,
        "typestr": values.dtype.str,
        "descr": values.dtype.descr,
        "stream": current_stream() or LEGACY,
        "version": 3,
        "strides": None if values.flags.c_contiguous else values.strides,
        "data": (array.data.ptr if values.size else 0, False),
    }


def to_dlpack(
    array: Transferable,
    stream: object,
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
        engine = machine().engine
        mark = engine.queue(current_stream(), "an event of __dlpack__")
        engine.queue(stream, "a wait of __dlpack__", after=mark)
    check_torch_is_in_order(machine())
    return np.asarray(_Shared(array)).__dlpack__(max_version=max_version)


class _Shared:
    """The values as NumPy sees them; they keep the device memory alive."""

    def __init__(self, array: Transferable) -> None:
        self._array = array
        self.__array_interface__ = array._values.__array_interface__
