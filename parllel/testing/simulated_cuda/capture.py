"""Captures: work that is recorded instead of being queued, and the graphs that replay it.

The rules are those of CUDA's stream capture. While a stream is captured, what is queued in it
becomes a part of a graph and does not run. Another stream joins when it waits for an event that was
recorded in the capture, and has to be joined again before the end. Scalars that a kernel is given
are those of the capture in each replay; memory is read anew.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from parllel.testing.simulated_cuda import runtime_errors
from parllel.testing.simulated_cuda.operation import Capture, Operation, StreamQueue
from parllel.testing.simulated_cuda.runtime_errors import CUDARuntimeError

GLOBAL, THREAD_LOCAL, RELAXED = range(3)  # cudaStreamCaptureMode


class Captures:
    """All captures that have begun and not ended."""

    def __init__(self) -> None:
        self._by_stream: dict[StreamQueue, Capture] = {}

    def __bool__(self) -> bool:
        return bool(self._by_stream)

    def of(self, stream: StreamQueue) -> Capture | None:
        """Return the capture that a stream takes part in."""
        return self._by_stream.get(stream)

    def begin(self, stream: StreamQueue, mode: int) -> None:
        """Begin to record a stream."""
        if stream in self._by_stream:
            raise self._by_stream[stream].fail(runtime_errors.CAPTURE_UNSUPPORTED)
        self._by_stream[stream] = Capture(stream, mode)

    def end(self, stream: StreamQueue) -> Capture:
        """Return what was recorded, and let its streams be as they were."""
        capture = self.of(stream)
        if capture is None:
            raise CUDARuntimeError(runtime_errors.INVALID_VALUE)
        if capture.origin is not stream:
            raise capture.fail(runtime_errors.CAPTURE_UNMATCHED)
        others = self._by_stream.items()
        self._by_stream = {each: other for each, other in others if other is not capture}
        if not capture.is_valid:
            raise CUDARuntimeError(runtime_errors.CAPTURE_INVALIDATED)
        if capture.find_unjoined():
            raise CUDARuntimeError(runtime_errors.CAPTURE_UNJOINED)
        return capture

    def find(
        self, stream: StreamQueue, after: Operation | None, *, is_default: bool
    ) -> Capture | None:
        """Return the capture that new work of a stream belongs to, which the stream may thus join.

        Args:
            stream: where it is queued.
            after: work that it has to come behind.
            is_default: whether it is the legacy default stream.
        """
        if is_default:
            for each, capture in self._by_stream.items():
                if each.is_blocking and each.device == stream.device:
                    raise capture.fail(runtime_errors.CAPTURE_IMPLICIT)
        own, joined = self.of(stream), None if after is None else after.capture
        if joined is not None and joined not in self._by_stream.values():
            raise CUDARuntimeError(runtime_errors.CAPTURED_EVENT)  # it is a part of a graph by now
        for found in (own, joined):
            if found is not None and not found.is_valid:
                raise CUDARuntimeError(runtime_errors.CAPTURE_INVALIDATED)
        if own is not None and after is not None and joined is not own:
            is_other = joined is not None
            codes = runtime_errors.CAPTURE_ISOLATION, runtime_errors.CAPTURE_MERGE
            raise own.fail(codes[is_other])
        if joined is not None:
            self._by_stream[stream] = joined
        return own or joined

    def check_wait(self, stream: StreamQueue | None, operation: Operation | None) -> None:
        """Raise if the host may not ask for work, or wait for it: of a stream, or of an event."""
        capture = None if stream is None else self.of(stream)
        if capture is not None:
            raise capture.fail(runtime_errors.CAPTURE_UNSUPPORTED)
        if operation is not None and operation.capture is not None:
            raise operation.capture.fail(runtime_errors.CAPTURED_EVENT)
        self.check_unsafe()

    def check_wait_for_all(self, device: int) -> None:
        """Raise if the host may not wait for the whole device: a stream of it is captured."""
        for stream, capture in self._by_stream.items():
            if stream.device == device:
                raise capture.fail(runtime_errors.CAPTURE_UNSUPPORTED)

    def check_unsafe(self) -> None:
        """Raise if a mode refuses calls that may wait for the device, as `cudaMalloc` does."""
        for capture in self._by_stream.values():
            is_of_thread = capture.thread == threading.get_ident()
            if capture.mode == GLOBAL or (capture.mode == THREAD_LOCAL and is_of_thread):
                raise capture.fail(runtime_errors.CAPTURE_UNSUPPORTED)


@dataclass
class GraphRecord:
    """A graph: recorded work that can be queued again and again.

    Args:
        nodes: the work, in the order in which it was recorded.
        origin: the stream that was captured.
        last: the end of the launch before: a graph never runs beside itself.
    """

    nodes: Sequence[Operation]
    origin: StreamQueue
    last: Operation | None = None
