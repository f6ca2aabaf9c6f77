"""Device memory that changes hands between libraries: which stream waits for which."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from parllel.cuda.devices import check_current
from parllel.cuda.library import DeviceArray, Stream, library
from parllel.cuda.streams import LEGACY, current_stream, order_streams, stream_at, use_stream

_NO_ORDER = -1


def is_device_array(value: object) -> bool:
    """Whether a value is an array of CuPy. Asking does not import CuPy."""
    ndarray = getattr(sys.modules.get("cupy"), "ndarray", None)
    return ndarray is not None and isinstance(value, ndarray)


def hand_over(number: int | None) -> Stream:
    """Make the stream of a library that receives memory wait for the caller's current one.

    The host does not wait.

    Args:
        number: stream, as DLPack numbers it: None and 1 are the legacy default stream, 2 is the
            per-thread default stream, -1 asks for no order, any other number is an address.

    Returns:
        The receiver's stream; the caller's current one where no order is asked for.

    Raises:
        TypeError: the number is no integer.
        ValueError: it is 0, which could mean three streams, or less than -1.
    """
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise TypeError(
            f"stream: got {number!r} ({type(number).__name__}), expected the integer of a stream,"
            " as DLPack numbers them"
        )
    if number is not None and (number == 0 or number < _NO_ORDER):
        raise ValueError(
            f"stream: got {number}, expected -1 (no order), 1 (legacy default stream), 2"
            " (per-thread default stream), or the address of a stream"
        )
    current = current_stream()
    if number == _NO_ORDER:
        return current
    if number is None or number == LEGACY:
        receiver = library().cuda.Stream.null
    else:
        receiver = stream_at(number)
    order_streams(current, receiver)
    return receiver


def array_over(owner: Any) -> DeviceArray:  # Any: all that has a CUDA array interface
    """Return a CuPy array over device memory that another library shows. Nothing is copied.

    Where the owner names a stream, the caller's current one waits for it; the host does not, as
    it does in `cupy.asarray`. A CuPy array is returned as it is, whatever device has it.

    Args:
        owner: object with `__cuda_array_interface__`, which the array keeps.

    Raises:
        CudaUnavailableError: there is no usable device.
        RuntimeError: it is memory of another device than the current one.
        ValueError: it has a mask.
    """
    cupy = library()
    if is_device_array(owner):
        return owner
    interface = owner.__cuda_array_interface__
    number = interface.get("stream")
    if number is not None:
        order_streams(stream_at(number), current_stream())
    array = cupy.asarray(_Ordered(owner, interface))
    check_current(array)
    return array


def array_by_dlpack(owner: Any) -> DeviceArray:  # Any: all that has DLPack's methods
    """Return a CuPy array over device memory that another library shows by DLPack. Nothing waits.

    The caller's current stream comes behind the owner's work. Once the array is gone, the owner may
    give the memory to others, whatever is queued here: keep the array until that has run.

    Args:
        owner: array of JAX, or of another library with `__dlpack__`.

    Raises:
        CudaUnavailableError: there is no usable device.
    """
    if is_device_array(owner):
        return owner
    with use_stream():
        array = library().from_dlpack(owner)
    check_current(array)
    return array


def array_interface(array: DeviceArray) -> dict[str, Any]:
    """Return an array's CUDA array interface, which names the caller's current stream."""
    with use_stream():
        interface: dict[str, Any] = array.__cuda_array_interface__
    return interface


class _Ordered:
    """Memory of an owner, without the stream that CuPy would make the host wait for."""

    def __init__(self, owner: Any, interface: Mapping[str, Any]) -> None:  # Any: as above
        self._owner = owner
        self.__cuda_array_interface__ = {**interface, "stream": None}
