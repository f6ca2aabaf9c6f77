"""Streams and events: which stream the caller's work goes to, and which one waits for another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Self, TypeAlias

from parllel.cuda.counters import counters
from parllel.cuda.devices import check_torchs, use_device
from parllel.cuda.library import Library, Stream, library

if TYPE_CHECKING:
    import torch

AnyStream: TypeAlias = "Stream | torch.cuda.Stream"  # of CuPy, which ships no types, or of torch

LEGACY = 1  # cudaStreamLegacy: the legacy default stream's other name, where 0 is not allowed


def current_stream() -> Stream:
    """Return the caller's current stream, as CuPy's kind of stream. Waits for nothing.

    It is torch's current stream of this thread where torch uses CUDA, and CuPy's otherwise. Both
    are the legacy default stream unless the caller chose another one, for both with `use_stream`.

    Raises:
        CudaUnavailableError: there is no usable device.
        RuntimeError: torch's current device is another one than CuPy's.
    """
    return current_stream_of(library())


def current_stream_of(cupy: Library) -> Stream:
    """Return the caller's current stream, given the CuPy that `library` has returned."""
    current = cupy.cuda.get_current_stream()
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return current
    of_torch = torch.cuda.current_stream()
    check_torchs(of_torch, cupy.cuda.runtime.getDevice())
    address = of_torch.cuda_stream
    return current if current.ptr == address else _stream_at(cupy, address)


def as_stream(stream: AnyStream | None) -> Stream:
    """Return a stream of CuPy or torch as CuPy's kind; the caller's current one for None.

    The stream is not copied: its owner must keep it as long as there is work in it.

    Raises:
        CudaUnavailableError: there is no usable device.
        TypeError: it is no stream.
    """
    if stream is None:
        return current_stream()
    if hasattr(stream, "cuda_stream"):
        return stream_at(stream.cuda_stream)
    if not hasattr(stream, "ptr"):
        raise TypeError(
            f"stream: got {stream!r} ({type(stream).__name__}), expected a stream of CuPy or torch,"
            " or None for the current one"
        )
    return stream


@contextmanager
def use_stream(stream: AnyStream | None = None) -> Iterator[Stream]:
    """Make a stream the current one of this thread: for parllel, for CuPy, and for torch.

    Without a stream, CuPy is sent to where the caller's work goes already. Torch follows where it
    uses CUDA; if it only starts to inside of the context, its own current stream is the caller's
    from there on, so start it before (`torch.cuda.init()`). Entering and leaving wait for nothing
    and order nothing: what one stream wrote and another one reads needs an `Event` between them.

    Raises:
        CudaUnavailableError: there is no usable device.
        TypeError: it is no stream.
    """
    cupy = library()
    if stream is None:  # it is torch's current one already
        used = current_stream_of(cupy)
        with in_cupy(cupy, used):
            yield used
        return
    used = as_stream(stream)
    with _in_torch(used), in_cupy(cupy, used):
        yield used


def in_cupy(cupy: Library, stream: Stream) -> AbstractContextManager[object]:
    """Return a context in which a stream of CuPy's kind is CuPy's current one, and not torch's."""
    context: AbstractContextManager[object] = stream
    return nullcontext() if stream == cupy.cuda.get_current_stream() else context


def order_streams(before: Stream, after: Stream) -> None:
    """Make the later work of a stream wait for all that is now in another one.

    The host does not wait. One event is recorded, and none where both are one stream.

    Args:
        before, after: streams, as `as_stream` returns them.
    """
    if address_of(before) != address_of(after):
        Event().record(before).wait(after)


def stream_at(address: int) -> Stream:
    """Return the stream at an address as CuPy's kind; it stays its owner's."""
    return _stream_at(library(), address)


def address_of(stream: Stream) -> int:
    """Return where a stream is, by one name for the legacy default stream, which has two."""
    address: int = stream.ptr or LEGACY
    return address


def new_stream() -> Stream:
    """Return a new stream of the current device. It and the legacy default one do not wait.

    Raises:
        CudaUnavailableError: there is no usable device.
    """
    return library().cuda.Stream(non_blocking=True)


def device_of(stream: Stream | None) -> AbstractContextManager[object]:
    """Return a context in which a stream's device is the current one of this thread.

    A new thread's is device 0. For None it does nothing.
    """
    if stream is None:
        return nullcontext()
    return use_device(stream.device_id)


def synchronize(stream: AnyStream | None = None) -> None:
    """Make the host wait until all work of one stream is done, the caller's current one.

    Other streams, and the rest of the device, go on.
    """
    counters.stream_synchronizations += 1
    as_stream(stream).synchronize()


class Event:
    """A mark in a stream. It takes no time stamps, so recording it costs little.

    An event that was never recorded counts as reached.

    >>> import numpy as np
    >>> from parllel import cuda
    >>> from parllel.testing.simulated_cuda import simulated_cuda
    >>> with simulated_cuda("lazy"):
    ...     array = cuda.to_device(np.arange(3))
    ...     event = Event().record()
    ...     event.synchronize()  # the host waits until the copy is done
    ...     print(event.query())
    True

    Args:
        sleeps: whether the host's thread sleeps while it waits in `synchronize`, and leaves its
            core to others. It goes on some time later than a thread that looks again and again.

    Raises:
        CudaUnavailableError: there is no usable device.
    """

    def __init__(self, *, sleeps: bool = False) -> None:
        cupy = library()
        self._event = cupy.cuda.Event(block=sleeps, disable_timing=True)
        self._runtime = cupy.cuda.runtime
        self._device: int = self._runtime.getDevice()

    def record(self, stream: AnyStream | None = None) -> Self:
        """Move the mark behind all that is now in a stream. Returns at once.

        Waits that were asked for before keep waiting for the mark's former place.

        Raises:
            RuntimeError: the stream belongs to another device than the event.
        """
        used = as_stream(stream)
        number = used.device_id if used.device_id >= 0 else self._runtime.getDevice()
        if number != self._device:
            raise RuntimeError(
                f"event: got a stream of device {number}, expected one of device {self._device},"
                " which was current when the event was made; use it inside of"
                f" `with parllel.cuda.use_device({self._device}):`, or make one for each device"
            )
        counters.event_records += 1
        self._event.record(used)
        return self

    def query(self) -> bool:
        """Tell whether the device has passed the mark. Returns at once."""
        is_reached: bool = self._event.done
        return is_reached

    def wait(self, stream: AnyStream | None = None) -> None:
        """Make the later work of a stream wait for the mark. The host does not wait."""
        counters.event_waits += 1
        as_stream(stream).wait_event(self._event)

    def synchronize(self) -> None:
        """Make the host wait until the device has passed the mark."""
        counters.event_synchronizations += 1
        self._event.synchronize()


def _stream_at(cupy: Library, address: int) -> Stream:
    # CuPy 14 deprecates ExternalStream for this.
    return cupy.cuda.Stream.from_external(_Handle(address))


class _Handle:
    """A stream of another library, as CUDA's stream protocol hands it on."""

    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address


def _in_torch(stream: Stream) -> AbstractContextManager[object]:
    """Return a context in which a stream is torch's current one, where torch uses CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return nullcontext()
    address = address_of(stream)
    if (torch.cuda.current_stream().cuda_stream or LEGACY) == address:
        return nullcontext()
    if address == LEGACY:
        context: AbstractContextManager[object] = torch.cuda.stream(torch.cuda.default_stream())
    else:
        context = torch.cuda.stream(torch.cuda.ExternalStream(address))
    return context
