"""Streams and events: which stream the caller's work goes to, and who waits for whom."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from parllel.cuda.counters import counters
from parllel.cuda.library import Stream, library


def current_stream() -> Stream:
    """Return the caller's current stream, as CuPy's kind of stream. Waits for nothing.

    It is torch's current stream of this thread where torch uses CUDA, and CuPy's otherwise. Both
    are the legacy default stream unless the caller chose another one.

    Raises:
        CudaUnavailableError: there is no usable device.
    """
    current = library().cuda.get_current_stream()
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return current
    address = torch.cuda.current_stream().cuda_stream
    return current if current.ptr == address else _stream_at(address)


def as_stream(stream: Any) -> Stream:  # Any: of CuPy, of torch, or None
    """Return a stream of CuPy or torch as CuPy's kind; the caller's current one for None.

    The stream is not copied: its owner must keep it as long as there is work in it.
    """
    if stream is None:
        return current_stream()
    if hasattr(stream, "cuda_stream"):
        return _stream_at(stream.cuda_stream)
    return stream


@contextmanager
def use_stream(stream: Any = None) -> Iterator[Stream]:  # Any: of CuPy, of torch, or None
    """Send what CuPy does in this thread to a stream, the caller's current one by default.

    Entering and leaving wait for nothing and order nothing.
    """
    stream = as_stream(stream)
    if stream == library().cuda.get_current_stream():
        yield stream
    else:
        with stream:
            yield stream


def synchronize(stream: Any = None) -> None:  # Any: of CuPy, of torch, or None
    """Make the host wait until all work of one stream is done, the caller's current one."""
    counters.stream_synchronizations += 1
    as_stream(stream).synchronize()


class Event:
    """A mark in a stream. It takes no time stamps, so recording it costs little.

    An event that was never recorded counts as reached.

    Raises:
        CudaUnavailableError: there is no usable device.
    """

    def __init__(self) -> None:
        self._event = library().cuda.Event(disable_timing=True)

    def record(self, stream: Any = None) -> Self:  # Any: of CuPy, of torch, or None
        """Move the mark behind all that is now in a stream. Returns at once.

        Waits that were asked for before keep waiting for the mark's former place.
        """
        counters.event_records += 1
        self._event.record(as_stream(stream))
        return self

    def query(self) -> bool:
        """Tell whether the device has passed the mark. Returns at once."""
        is_reached: bool = self._event.done
        return is_reached

    def wait(self, stream: Any = None) -> None:  # Any: of CuPy, of torch, or None
        """Make the later work of a stream wait for the mark. The host does not wait."""
        counters.event_waits += 1
        as_stream(stream).wait_event(self._event)

    def synchronize(self) -> None:
        """Make the host wait until the device has passed the mark."""
        counters.event_synchronizations += 1
        self._event.synchronize()


class _Handle:
    """A stream of another library, as CUDA's stream protocol hands it on."""

    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address


def _stream_at(address: int) -> Stream:
    # CuPy 14 deprecates ExternalStream for this; it leaves the stream to its owner.
    return library().cuda.Stream.from_external(_Handle(address))
