"""Copies between the host and the device, counted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parllel.cuda.capturing import refuse_capture
from parllel.cuda.counters import counters
from parllel.cuda.devices import check_current
from parllel.cuda.library import DeviceArray, library
from parllel.cuda.streams import AnyStream, use_stream


def copy_to_device(
    host: NDArray[Any],
    *,
    out_device: DeviceArray,
    stream: AnyStream | None = None,
) -> None:
    """Copy host values into device memory, in a stream, the caller's current one by default.

    From page-locked memory the copy is asynchronous: the bytes are read when the stream gets
    there, and `host` must stay as it is until then (record an event behind the copy). From other
    memory the bytes were taken when the call returns.

    Args:
        host: values to copy.
        out_device: C- or F-contiguous device array of the same shape and dtype, overwritten.
        stream: where the copy is queued.

    Raises:
        TypeError: dtypes differ.
        ValueError: shapes differ.
        RuntimeError: `out_device` is not contiguous, or memory of a device that is not current; or
            the stream is being captured.
    """
    check_current(out_device)
    with use_stream(stream) as used:
        refuse_capture("a copy from the host", stream=used)
        counters.copies_to_device += 1
        counters.bytes_to_device += host.nbytes
        out_device.set(host, stream=used)


def copy_to_host(
    device: DeviceArray,
    *,
    out_host: NDArray[Any],
    stream: AnyStream | None = None,
) -> None:
    """Copy device values into host memory, in a stream, the caller's current one by default.

    Into page-locked memory the copy is asynchronous: `out_host` holds the values only after an
    event that was recorded behind the copy. Into other memory the host waits for the copy.

    Args:
        device: device array; one that is not contiguous is gathered on the device first.
        out_host: C- or F-contiguous array of the same shape and dtype, overwritten.
        stream: where the copy is queued.

    Raises:
        TypeError: dtypes differ.
        ValueError: shapes differ.
        RuntimeError: `out_host` is not contiguous, `device` is memory of one that is not current,
            or the stream is being captured.
    """
    check_current(device)
    with use_stream(stream) as used:  # what is not contiguous is gathered in CuPy's current stream
        refuse_capture("a copy to the host", stream=used)
        counters.copies_to_host += 1
        counters.bytes_to_host += device.nbytes
        device.get(stream=used, out=out_host, blocking=False)


def to_device(host: ArrayLike, *, stream: AnyStream | None = None) -> DeviceArray:
    """Return a new device array with host values, written in a stream, asynchronously.

    Page-locked values are read when the stream gets there, others before the call returns.
    CuPy's allocator owns the new memory, and its dtype has the machine's own byte order.

    Raises:
        CudaUnavailableError: there is no usable device.
        RuntimeError: the stream is being captured.
    """
    cupy = library()
    values = np.asarray(host)
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    with use_stream(stream) as used:
        refuse_capture("a copy from the host", stream=used)
        counters.copies_to_device += 1
        counters.bytes_to_device += values.nbytes
        return cupy.asarray(values)


def to_host(device: DeviceArray, *, stream: AnyStream | None = None) -> NDArray[Any]:
    """Return device values in a new NumPy array, copied in a stream, the caller's current one.

    The host waits for the stream. An array that is not contiguous is gathered on the device first.

    Raises:
        RuntimeError: the stream is being captured, or `device` is memory of one that is not
            current.
    """
    check_current(device)
    with use_stream(stream) as used:
        refuse_capture("a copy to the host", stream=used)
        counters.copies_to_host += 1
        counters.bytes_to_host += device.nbytes
        counters.stream_synchronizations += 1
        values: NDArray[Any] = device.get(stream=used)
    return values
