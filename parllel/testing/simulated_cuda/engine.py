"""Engine: the streams of one simulated device, the work in them, and which work needs which.

The rules are CUDA's. Work of one stream runs in its order. Work of different streams is not
ordered, with two exceptions: a stream that was told to wait for an event, and the legacy default
stream (address 0), which waits for all that is in blocking streams and which they wait for.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from parllel.cuda import Counters
from parllel.testing.simulated_cuda.origins import find_origin

LEGACY = 1  # cudaStreamLegacy: another name for address 0
_addresses = itertools.count(0x5000, 0x10)  # of streams; like pointers, never used twice


class Operation:
    """One piece of queued work.

    Args:
        name: what it does, for messages.
        stream: the stream it was queued in.
        needs: what must have run before it.
        action: does it; None for a mere mark.
        checks: asked before it runs; they raise if it may not.
    """

    __slots__ = ("action", "checks", "is_done", "name", "needs", "origin", "stream")

    def __init__(
        self,
        name: str,
        stream: StreamQueue,
        needs: Sequence[Operation],
        action: Callable[[], None] | None,
        checks: Sequence[Callable[[str], None]],
    ) -> None:
        self.name = name
        self.stream = stream
        self.needs = needs
        self.action = action
        self.checks = checks
        self.origin = find_origin()
        self.is_done = False


class StreamQueue:
    """The work of one stream that has not run.

    Args:
        address: what CUDA calls the stream.
        is_blocking: whether it and the legacy default stream wait for each other.
    """

    __slots__ = ("address", "is_blocking", "last", "pending")

    def __init__(self, address: int, *, is_blocking: bool) -> None:
        self.address = address
        self.is_blocking = is_blocking
        self.pending: deque[Operation] = deque()
        self.last: Operation | None = None  # also after it has run


class Schedule(Protocol):
    """The choice of moments at which queued work runs: the engine asks it at each event."""

    def queued(self, engine: Engine, operation: Operation) -> None:
        """Run what shall run now that an operation was queued."""

    def asked(self, engine: Engine, operation: Operation) -> bool:
        """Tell whether an operation is done. A host that asks again and again must see it end."""

    def awaited(self, engine: Engine, operation: Operation) -> None:
        """Run an operation, because the host waits for it, and all that it needs."""


class Engine:
    """Queues work, and runs it when its schedule says so.

    Args:
        schedule: picks the moment.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.counters = Counters()
        self.lock = threading.RLock()
        self.before_work: Callable[[], None] | None = None  # asked before anything is queued
        self._schedule = schedule
        self._default = StreamQueue(0, is_blocking=False)
        self._streams = {0: self._default, LEGACY: self._default}
        self._queues = [self._default]

    def open_stream(self, *, is_blocking: bool) -> int:
        """Return the address of a new stream."""
        return self._open(next(_addresses), is_blocking=is_blocking).address

    def stream_at(self, address: int) -> StreamQueue:
        """Return a stream. One that is not known is another library's, and not blocking."""
        known = self._streams.get(address)
        return known or self._open(address, is_blocking=False)

    def queue(
        self,
        address: int,
        name: str,
        action: Callable[[], None] | None = None,
        *,
        checks: Sequence[Callable[[str], None]] = (),
        after: Operation | None = None,
    ) -> Operation:
        """Add work to the stream at an address.

        Args:
            address: address of the stream.
            name: what the work does, for messages.
            action: does it.
            checks: asked, with a description, before it runs.
            after: work of another stream that must have run before.
        """
        with self.lock:
            if self.before_work is not None:
                self.before_work()
            stream = self.stream_at(address)
            needs = [stream.last, after, *self._default_stream_rule(stream)]
            undone = tuple(need for need in needs if need is not None and not need.is_done)
            operation = Operation(name, stream, undone, action, checks)
            stream.pending.append(operation)
            stream.last = operation
            self._schedule.queued(self, operation)
            return operation

    def is_done(self, operation: Operation | None) -> bool:
        """Tell the host whether work is done."""
        with self.lock:
            return operation is None or self._schedule.asked(self, operation)

    def wait(self, operation: Operation | None) -> None:
        """Make the host wait for work, if there is any."""
        with self.lock:
            if operation is not None and not operation.is_done:
                self._schedule.awaited(self, operation)

    def wait_for_all(self) -> None:
        """Make the host wait for the whole device."""
        with self.lock:
            if self.before_work is not None:
                self.before_work()
            for stream in list(self._queues):
                self.wait(stream.last)

    @property
    def n_pending(self) -> int:
        """Number of operations that have not run."""
        return sum(len(stream.pending) for stream in self._queues)

    # For schedules

    def ready(self) -> list[Operation]:
        """Return what could run now: the first of each stream, unless it needs another."""
        heads = (stream.pending[0] for stream in self._queues if stream.pending)
        return [head for head in heads if all(need.is_done for need in head.needs)]

    def run_needed(self, operation: Operation) -> None:
        """Run an operation and what it needs, and nothing else."""
        path = [operation]
        while path:
            undone = [need for need in path[-1].needs if not need.is_done]
            if undone:
                path += undone
            elif path[-1].is_done:
                path.pop()
            else:
                self.run(path.pop())

    def run_first_needed(self, operation: Operation) -> None:
        """Run one operation that can run now and that this one needs, or this one."""
        while True:
            undone = next((need for need in operation.needs if not need.is_done), None)
            if undone is None:
                break
            operation = undone
        self.run(operation)

    def run(self, operation: Operation) -> None:
        """Run an operation that is ready."""
        first = operation.stream.pending.popleft()
        assert first is operation, "streams run their work in order"
        action, checks = operation.action, operation.checks
        operation.is_done, operation.needs, operation.action, operation.checks = True, (), None, ()
        if action is None:
            return
        try:
            for check in checks:
                check(operation.name)
            action()
        except Exception as error:
            error.add_note(
                f"simulated CUDA: {operation.name}, in the stream at"
                f" {operation.stream.address:#x}, queued at {operation.origin}"
            )
            raise

    def _open(self, address: int, *, is_blocking: bool) -> StreamQueue:
        stream = StreamQueue(address, is_blocking=is_blocking)
        self._streams[address] = stream
        self._queues.append(stream)
        return stream

    def _default_stream_rule(self, stream: StreamQueue) -> Iterable[Operation | None]:
        if stream is self._default:
            return [other.last for other in self._queues if other.is_blocking]
        return [self._default.last] if stream.is_blocking else []
