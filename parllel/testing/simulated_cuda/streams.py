"""The stand-ins for cupy.cuda.Stream, Event and Device.

The default stream is the legacy one, as it is CuPy's and torch's own unless a program asks for
per-thread default streams, which are not imitated.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from parllel.testing.simulated_cuda.active import current_stream, machine
from parllel.testing.simulated_cuda.capture import RELAXED, GraphRecord
from parllel.testing.simulated_cuda.engine import LEGACY
from parllel.testing.simulated_cuda.errors import NotImitatedError
from parllel.testing.simulated_cuda.operation import Operation
from parllel.testing.simulated_cuda.runtime_errors import (
    INVALID_DEVICE,
    INVALID_HANDLE,
    CUDARuntimeError,
)


class Stream:
    """Stands in for cupy.cuda.Stream."""

    null: ClassVar[Stream]
    ptr: int
    device_id: int

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        if ptds:
            raise NotImitatedError("per-thread default streams are not imitated")
        self.device_id = -1 if null else machine().thread.device
        is_blocking = not non_blocking
        self.ptr = 0 if null else machine().engine.open_stream(is_blocking=is_blocking)

    @classmethod
    def from_external(cls, obj: Any) -> Self:
        """Return another library's stream; one that is not known counts as not blocking."""
        version, address = obj.__cuda_stream__()
        if version != 0:
            raise ValueError(f"__cuda_stream__() returned unsupported version {version}")
        stream = cls.__new__(cls)
        stream.ptr, stream.device_id = address, machine().thread.device
        return stream

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def __repr__(self) -> str:
        return f"<Stream {self.ptr} (simulated)>"

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr

    def __enter__(self) -> Self:
        self._check_device()
        machine().thread.push(self.ptr)
        return self

    def __exit__(self, *args: object) -> None:
        machine().thread.pop()

    def _check_device(self) -> None:
        """Raise as CuPy does, whose stream can't be the current one of another device."""
        current = machine().thread.device
        if self.device_id not in (-1, current):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with"
                f" the current device ({current})"
            )

    def use(self) -> Self:
        """Make this stream the current one of its device in this thread."""
        self._check_device()
        machine().thread.use(self.ptr)
        return self

    @property
    def done(self) -> bool:
        """Whether all work of the stream is done."""
        engine = machine().engine
        stream = engine.stream_at(self.ptr)
        engine.captures.check_wait(stream, None)
        return engine.is_done(stream.last)

    def synchronize(self) -> None:
        """Make the host wait for the stream's work."""
        engine = machine().engine
        stream = engine.stream_at(self.ptr)
        engine.captures.check_wait(stream, None)
        engine.counters.stream_synchronizations += 1
        engine.wait(stream.last)

    def is_capturing(self) -> bool:
        """Tell whether what is queued in the stream is recorded."""
        return is_capturing(self.ptr)

    def begin_capture(self, mode: int | None = None) -> None:
        """Record what is queued in the stream from now on, instead of running it."""
        if self.ptr in (0, LEGACY):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        engine = machine().engine
        engine.captures.begin(engine.stream_at(self.ptr), RELAXED if mode is None else mode)

    def end_capture(self) -> Graph:
        """Return what was recorded."""
        engine = machine().engine
        capture = engine.captures.end(engine.stream_at(self.ptr))
        return Graph._of(GraphRecord(capture.nodes, capture.origin))

    def record(self, event: Event | None = None) -> Event:
        """Record an event in the stream, a new one by default."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Make the stream's later work wait for the place where the event is now."""
        engine = machine().engine
        engine.counters.event_waits += not self.is_capturing()
        engine.queue(self.ptr, "a wait for an event", after=event._mark)


Stream.null = Stream(null=True)


class Event:
    """Stands in for cupy.cuda.Event."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        if interprocess:
            raise NotImitatedError("events between processes are not imitated")
        self._is_blocking = block  # where a thread waits for it, in CUDA's words
        self._device = machine().thread.device
        self._mark: Operation | None = None  # where it was recorded last

    @property
    def done(self) -> bool:
        """Whether the event was reached; True before it is recorded."""
        if self._mark is None or self._mark.is_done:
            return True  # also after the simulation's end
        machine().engine.captures.check_wait(None, self._mark)
        return machine().engine.is_done(self._mark)

    def record(self, stream: Stream | None = None) -> None:
        """Move the event behind all that is now in a stream, the current one by default."""
        engine = machine().engine
        address = current_stream() if stream is None else stream.ptr
        if engine.stream_at(address).device != self._device:
            raise CUDARuntimeError(INVALID_HANDLE)
        engine.counters.event_records += not is_capturing(address)
        self._mark = engine.queue(address, "an event")

    def synchronize(self) -> None:
        """Make the host wait for the event."""
        engine = machine().engine
        engine.captures.check_wait(None, self._mark)
        engine.counters.event_synchronizations += 1
        engine.wait(self._mark)


class Graph:
    """Stands in for cupy.cuda.Graph, which `Stream.end_capture` returns."""

    _recorded: GraphRecord

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            "currently this class cannot be initiated by the user and must be created via stream"
            " capture"
        )

    @classmethod
    def _of(cls, recorded: GraphRecord) -> Self:
        graph = cls.__new__(cls)
        graph._recorded = recorded
        return graph

    def launch(self, stream: Stream | None = None) -> None:
        """Queue what was recorded, in a stream, the current one by default."""
        address = current_stream() if stream is None else stream.ptr
        machine().engine.counters.graph_launches += 1
        machine().engine.launch(self._recorded, address)

    def upload(self, stream: Stream | None = None) -> None:
        """Do nothing: a graph is brought to the device with its first launch."""


class Device:
    """Stands in for cupy.cuda.Device."""

    compute_capability = "75"  # the oldest that parllel's kernels are made for

    def __init__(self, device: int | None = None) -> None:
        self.id = machine().thread.device if device is None else int(device)
        self._before: list[int] = []

    def __enter__(self) -> Self:
        self._before.append(machine().thread.device)
        return self.use()

    def __exit__(self, *args: object) -> None:
        machine().thread.device = self._before.pop()

    def use(self) -> Self:
        """Make it the current device of this thread."""
        if not 0 <= self.id < machine().n_devices:
            raise CUDARuntimeError(INVALID_DEVICE)
        machine().thread.device = self.id
        return self

    @property
    def pci_bus_id(self) -> str:
        """Address on the bus."""
        return f"0000:00:{self.id:02x}.0"

    def __int__(self) -> int:
        return self.id

    def synchronize(self) -> None:
        """Make the host wait for the whole device."""
        with self:
            synchronize_device()


def get_current_stream(device_id: int = -1) -> Stream:
    """Stand in for cupy.cuda.get_current_stream."""
    number = machine().thread.device if device_id < 0 else device_id
    address = machine().thread.stream_of(number)
    if address in (0, LEGACY):
        return Stream.null
    stream = Stream.from_external(_At(address))
    stream.device_id = number
    return stream


def is_capturing(address: int) -> bool:
    """Tell whether the stream at an address is captured.

    Raises:
        RuntimeError: an error has made the capture invalid.
    """
    engine = machine().engine
    capture = engine.captures.of(engine.stream_at(address))
    if capture is not None and not capture.is_valid:
        raise RuntimeError(
            "the stream was capturing, but an error has invalidated the capture sequence"
        )
    return capture is not None


def synchronize_device() -> None:
    """Make the host wait for the whole current device."""
    engine = machine().engine
    engine.captures.check_wait_for_all(engine.thread.device)
    engine.counters.device_synchronizations += 1
    engine.wait_for_all(engine.thread.device)


class _At:
    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address
