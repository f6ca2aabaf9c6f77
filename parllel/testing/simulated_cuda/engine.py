"""Engine: the streams of the simulated devices, the work in them, and which work needs which.

The rules are CUDA's. Work of one stream runs in its order. Work of different streams is not
ordered, with two exceptions: a stream that was told to wait for an event, and the legacy default
stream (address 0), which waits for all that is in blocking streams and which they wait for.
Each device has a legacy default stream of its own, which orders work of that device alone.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from parllel.cuda import Counters
from parllel.testing.simulated_cuda.capture import Captures, GraphRecord
from parllel.testing.simulated_cuda.operation import Operation, StreamQueue
from parllel.testing.simulated_cuda.threads import ThreadState

LEGACY = 1  # cudaStreamLegacy: another name for address 0
_addresses = itertools.count(0x5000, 0x10)  # of streams; like pointers, never used twice


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
        self.captures = Captures()
        self.thread = ThreadState()  # the current device and streams are each thread's own
        self.running: StreamQueue | None = None  # whose work runs now
        self.n_operations = 0  # that do something: neither marks, nor the freeing of memory
        self.lock = threading.RLock()
        self.before_work: Callable[[], None] | None = None  # asked before anything is queued
        self._schedule = schedule
        self._defaults: dict[int, StreamQueue] = {}  # legacy default streams, by device
        self._streams: dict[int, StreamQueue] = {}
        self._queues: list[StreamQueue] = []

    def open_stream(self, *, is_blocking: bool) -> int:
        """Return the address of a new stream of the current device."""
        device = self.thread.device
        return self._open(next(_addresses), is_blocking=is_blocking, device=device).address

    def stream_at(self, address: int, device: int | None = None) -> StreamQueue:
        """Return a stream. One that is not known is another library's, and not blocking.

        Args:
            address: address of the stream; 0 and 1 are the legacy default stream.
            device: whose default stream is meant, or whose an unknown one is; by default the
                current device.
        """
        number = self.thread.device if device is None else device
        if address in (0, LEGACY):
            if number not in self._defaults:
                self._defaults[number] = StreamQueue(0, is_blocking=False, device=number)
                self._queues.append(self._defaults[number])
            return self._defaults[number]
        known = self._streams.get(address)
        return known or self._open(address, is_blocking=False, device=number)

    def queue(
        self,
        address: int,
        name: str,
        action: Callable[[], None] | None = None,
        *,
        checks: Sequence[Callable[[str], None]] = (),
        after: Operation | None = None,
        is_recorded: bool = True,
        device: int | None = None,
    ) -> Operation:
        """Add work to the stream at an address, or to the graph that it is captured for.

        Args:
            address: address of the stream.
            name: what the work does, for messages.
            action: does it.
            checks: asked, with a description, before it runs.
            after: work of another stream that must have run before.
            is_recorded: whether a capture of the stream gets the work: the driver's own is queued
                all the same.
            device: as for `stream_at`.
        """
        with self.lock:
            if self.before_work is not None:
                self.before_work()
            stream = self.stream_at(address, device)
            if is_recorded:
                is_default = stream.address == 0
                capture = self.captures.find(stream, after, is_default=is_default)
                if capture is not None:
                    needs = capture.needs_of(stream, after)
                    capture.add(Operation(name, stream, needs, action, checks, capture))
                    return capture.nodes[-1]
            self.n_operations += action is not None and is_recorded
            return self._add(name, stream, [after], action, checks)

    def launch(self, graph: GraphRecord, address: int) -> None:
        """Queue a graph in the stream at an address: what it recorded, branches side by side."""
        with self.lock:
            self.n_operations += 1
            begin = self.queue(address, "a graph's begin", after=graph.last)
            made: dict[Operation, Operation] = {}
            streams = {graph.origin: self.stream_at(address)}
            for node in graph.nodes:
                if node.stream not in streams:
                    of_graph, number = next(_addresses), node.stream.device
                    streams[node.stream] = self._open(of_graph, is_blocking=False, device=number)
                stream = streams[node.stream]
                needs = [made[need] for need in node.needs] or [begin]
                made[node] = self._add(node.name, stream, needs, node.action, node.checks)
            graph.last = self.queue(address, "a graph's end")

    def _add(
        self,
        name: str,
        stream: StreamQueue,
        needs: Iterable[Operation | None],
        action: Callable[[], None] | None,
        checks: Sequence[Callable[[str], None]],
    ) -> Operation:
        needs = [stream.last, *needs, *self._default_stream_rule(stream)]
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

    def wait_for_all(self, device: int | None = None) -> None:
        """Make the host wait for a whole device, by default for all of them."""
        with self.lock:
            if self.before_work is not None:
                self.before_work()
            for stream in list(self._queues):
                if device is None or stream.device == device:
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
        before, self.running = self.running, operation.stream
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
        finally:
            self.running = before

    def _open(self, address: int, *, is_blocking: bool, device: int) -> StreamQueue:
        stream = StreamQueue(address, is_blocking=is_blocking, device=device)
        self._streams[address] = stream
        self._queues.append(stream)
        return stream

    def _default_stream_rule(self, stream: StreamQueue) -> Iterable[Operation | None]:
        if stream.address == 0:
            others = (other for other in self._queues if other.device == stream.device)
            return [other.last for other in others if other.is_blocking]
        return [self.stream_at(0, stream.device).last] if stream.is_blocking else []
