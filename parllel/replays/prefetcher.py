"""Prefetcher: a thread that has the next minibatch ready while the caller learns."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypeAlias

from parllel import cuda
from parllel.replays.replay_buffer import ReplayBuffer
from parllel.replays.slots import DeviceSlot, HostSlot, Slot
from parllel.tree import ArrayDict

# A slot to be filled; an event to be set when all before it are; or None: the end.
_Requests: TypeAlias = "queue.SimpleQueue[int | threading.Event | None]"
# A slot that was filled, or what was raised instead.
_Results: TypeAlias = "queue.SimpleQueue[int | Exception]"


class Prefetcher:
    """Draw minibatches of a replay buffer in host memory ahead, in a thread.

    Minibatches are those that `ReplayBuffer.sample` would draw, in the same order, but earlier:
    when `next` returns one, `n_slots - 1` more are already asked for. What changes the buffer (a
    sampler's batch, new priorities, saving) waits until these are drawn, so the same program
    draws the same minibatches each time. What is drawn ahead when the buffer is saved or loaded is
    drawn anew.

    For the device, minibatches are gathered into pinned memory, and one copy each, in a stream of
    its own, brings them there: a buffer may be larger than the GPU's memory. `next` makes the
    caller's current stream wait for the copy, and nothing else; what still reads the minibatch
    before must be in that stream, too.

    Args:
        replay: the buffer, its tree in host memory. One whose tree a GPU works on needs no
            prefetcher: there `sample` waits for nothing.
        batch_size: number of transitions.
        n_slots: minibatches that have memory: one that is learned from, and those ahead.
        storage: "local", or "device" for minibatches on the device.
        timeout_s: how long a minibatch may take.

    Raises:
        CudaUnavailableError: minibatches are to be on a device, and there is none.
        MemoryError: of the slots.
        ValueError: n_slots is below 2, or the storage is another one; or of a buffer on a device.
    """

    def __init__(
        self,
        replay: ReplayBuffer,
        batch_size: int,
        *,
        n_slots: int = 2,
        storage: str = "local",
        timeout_s: float = 60.0,
    ) -> None:
        _check(replay, n_slots, storage)
        self._replay = replay
        self._timeout_s = timeout_s
        self._stream = cuda.new_stream() if storage == "device" else None
        self._slots: list[Slot] = [
            HostSlot(replay, batch_size)
            if self._stream is None
            else DeviceSlot(replay, batch_size, self._stream)
            for _ in range(n_slots)
        ]
        self._requests: _Requests = queue.SimpleQueue()
        self._results: _Results = queue.SimpleQueue()
        self._n_waiting = 0  # results that were asked for and not taken
        self._in_use: int | None = None
        self._is_closed = False
        arguments = (replay, self._slots, self._requests, self._results, self._stream)
        self._thread = threading.Thread(
            target=_fill_slots, args=arguments, name="parllel-prefetch", daemon=True
        )
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._requests.put, None)
        replay.watchers.add(self)

    def next(self) -> ArrayDict:
        """Return the next minibatch: a tree as of `ReplayBuffer.sample`, until the next call.

        Raises:
            RuntimeError: the prefetcher is closed, its thread was left behind by a fork, or no
                minibatch came in time.
            Exception: what drawing it raised; the next call begins anew.
        """
        if self._is_closed:
            raise RuntimeError("the prefetcher is closed; make a new one")
        self._check_thread()
        used, self._in_use = self._in_use, None
        if used is not None:
            self._slots[used].release()
        if not self._n_waiting:
            for number in range(len(self._slots)):
                self._ask(number)
        elif used is not None:
            self._ask(used)
        result = self._await_result()
        if isinstance(result, Exception):
            self.discard()
            raise result
        self._in_use = result
        self._slots[result].take()
        return self._slots[result].tensors

    def __iter__(self) -> Iterator[ArrayDict]:
        while True:
            yield self.next()

    def settle(self) -> None:
        """Wait until all minibatches that were asked for are drawn.

        Raises:
            RuntimeError: they were not drawn in time.
        """
        if self._is_closed or not self._thread.is_alive():
            return
        is_settled = threading.Event()
        self._requests.put(is_settled)
        if not is_settled.wait(self._timeout_s):
            raise self._too_late()

    def discard(self) -> None:
        """Forget what was drawn ahead. The minibatch that `next` returned stays what it is.

        Raises:
            RuntimeError: what was asked for was not drawn in time.
        """
        if self._is_closed or not self._thread.is_alive():
            return
        self.settle()
        while self._n_waiting:
            self._await_result()

    def close(self) -> None:
        """End the thread and free the slots. Called again, it does nothing.

        Tensors on a device that were taken stay valid; those of the host do, too.

        Raises:
            RuntimeError: the thread did not end in time; the slots are left to it.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._replay.watchers.discard(self)
        self._finalizer()
        self._thread.join(self._timeout_s)
        if self._thread.is_alive():
            raise RuntimeError(f"prefetcher: its thread did not end within {self._timeout_s} s")
        for slot in self._slots:
            slot.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, slot: int) -> None:
        self._n_waiting += 1
        self._requests.put(slot)

    def _await_result(self) -> int | Exception:
        try:
            result = self._results.get(timeout=self._timeout_s)
        except queue.Empty:
            raise self._too_late() from None
        self._n_waiting -= 1
        return result

    def _check_thread(self) -> None:
        if not self._thread.is_alive():
            raise RuntimeError(
                "prefetcher: its thread does not run, as in a process that was forked from its own"
                " one; make a new prefetcher here"
            )

    def _too_late(self) -> RuntimeError:
        return RuntimeError(f"prefetcher: no minibatch came within {self._timeout_s} s = timeout_s")


def _fill_slots(
    replay: ReplayBuffer, slots: Sequence[Slot], requests: _Requests, results: _Results, stream: Any
) -> None:
    """Fill slots as they are asked for, until None is. Runs in the thread."""
    with cuda.device_of(stream):
        while (request := requests.get()) is not None:
            if isinstance(request, threading.Event):
                request.set()
                continue
            try:
                slots[request].fill(replay)
            except Exception as error:
                results.put(error)
            else:
                results.put(request)
        for slot in slots:
            slot.finish()


def _check(replay: ReplayBuffer, n_slots: int, storage: str) -> None:
    if replay.storage == "device":
        raise ValueError(
            "replay: its tree is in memory of the GPU; call sample(), which waits for nothing"
        )
    if n_slots < 2:
        raise ValueError(f"n_slots: got {n_slots}, expected 2 or more: one in use, one ahead")
    if storage not in ("local", "device"):
        raise ValueError(f'storage: got {storage!r}, expected "local" or "device"')
