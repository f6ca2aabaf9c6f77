"""Operations: queued work, the stream that it is in, and the capture that it is recorded for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from parllel.testing.simulated_cuda.origins import find_origin
from parllel.testing.simulated_cuda.runtime_errors import CUDARuntimeError


class Operation:
    """One piece of queued work.

    Args:
        name: what it does, for messages.
        stream: the stream it was queued in.
        needs: what must have run before it.
        action: does it; None for a mere mark.
        checks: asked before it runs; they raise if it may not.
        capture: what it is a part of, if it was recorded: then it never runs itself.
    """

    __slots__ = ("action", "capture", "checks", "is_done", "name", "needs", "origin", "stream")

    def __init__(
        self,
        name: str,
        stream: StreamQueue,
        needs: Sequence[Operation],
        action: Callable[[], None] | None,
        checks: Sequence[Callable[[str], None]],
        capture: Capture | None = None,
    ) -> None:
        self.name = name
        self.stream = stream
        self.needs = needs
        self.action = action
        self.checks = checks
        self.capture = capture
        self.origin = find_origin()
        self.is_done = False


class StreamQueue:
    """The work of one stream that has not run.

    Args:
        address: what CUDA calls the stream.
        is_blocking: whether it and the legacy default stream wait for each other.
        device: number of the device whose work it orders.
    """

    __slots__ = ("address", "device", "is_blocking", "last", "pending")

    def __init__(self, address: int, *, is_blocking: bool, device: int) -> None:
        self.address = address
        self.device = device
        self.is_blocking = is_blocking
        self.pending: deque[Operation] = deque()
        self.last: Operation | None = None  # also after it has run


class Capture:
    """What is being captured: the work of the stream where it began, and of those that joined.

    Args:
        origin: the stream where it began.
        mode: which calls that are unsafe meanwhile are refused: of all threads (`GLOBAL`), of the
            one that began (`THREAD_LOCAL`), or none (`RELAXED`).
    """

    def __init__(self, origin: StreamQueue, mode: int) -> None:
        self.origin = origin
        self.mode = mode
        self.thread = threading.get_ident()
        self.nodes: list[Operation] = []
        self.ends: dict[StreamQueue, Operation | None] = {origin: None}  # the last of each stream
        self.is_valid = True

    def fail(self, status: int) -> CUDARuntimeError:
        """Make the capture invalid, and return the error of the call that did it."""
        self.is_valid = False
        return CUDARuntimeError(status)

    def needs_of(self, stream: StreamQueue, after: Operation | None) -> list[Operation]:
        """Return what new work of a stream comes behind."""
        return [each for each in (self.ends.get(stream), after) if each is not None]

    def add(self, node: Operation) -> None:
        """Record work."""
        self.nodes.append(node)
        self.ends[node.stream] = node

    def find_unjoined(self) -> list[StreamQueue]:
        """Return the streams whose last work nothing of the first stream comes behind."""
        last, behind = self.ends[self.origin], set()
        path = [] if last is None else [last]
        while path:
            node = path.pop()
            if node not in behind:
                behind.add(node)
                path += node.needs
        return [stream for stream, end in self.ends.items() if end and end not in behind]
