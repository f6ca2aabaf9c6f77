"""Prefetcher: a thread that has the next minibatch ready while the caller learns."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self, TypeAlias

import numpy as np

from parllel import cuda
from parllel.arrays import Array
from parllel.replays.base_replay import BaseReplay
from parllel.replays.minibatch_outputs import FixedTensors
from parllel.storages import KINDS, allocate, storage_for
from parllel.tree import ArrayDict

_N_GLANCES = 10  # so often a wait of `timeout_s` looks whether a minibatch came

# The number of a minibatch to fill; an event to set when all before it are filled; None: the end.
_Requests: TypeAlias = "queue.SimpleQueue[int | threading.Event | None]"
# The number of a minibatch that was filled, or what was raised instead.
_Results: TypeAlias = "queue.SimpleQueue[int | Exception]"


class Prefetcher:
    """Draw minibatches of a replay buffer in host memory ahead, in a thread.

    Minibatches are those that `ReplayBuffer.sample` would draw, in the same order, but earlier:
    when `next` returns one, `n_batches - 1` more are already asked for. What changes the buffer (a
    sampler's batch, new priorities, saving) waits until these are drawn, so the same program
    draws the same minibatches each time. What is drawn ahead when the buffer is saved or loaded is
    drawn anew.

    For the device, minibatches are gathered into pinned memory, and one copy for each, in a stream
    of the prefetcher's own, brings them there: a buffer may be larger than the GPU's memory. `next`
    makes the caller's current stream wait for the copy, and nothing else; work that still reads
    the minibatch before must be in that stream, too.

    Args:
        replay: the buffer, its tree in host memory. One whose tree a GPU works on needs no
            prefetcher: there `sample` waits for nothing.
        batch_size: number of transitions, or of windows, of a minibatch.
        n_batches: number of minibatches that have memory, 2 or more: the caller learns from one,
            and the others are drawn ahead.
        storage: "local", or "device" for minibatches on the device.
        timeout_s: the longest time in seconds that drawing a minibatch may take. Time in which the
            process is stopped (SIGSTOP) does not count.

    Raises:
        CudaUnavailableError: minibatches are to be on a device, and there is none.
        MemoryError: there is no memory for so many minibatches.
        ValueError: n_batches is below 2, the storage is another one, or the buffer is on a device.

    >>> import numpy as np
    >>> from parllel import Array, ArrayDict
    >>> from parllel.replays import Prefetcher, ReplayBuffer
    >>> samples = ArrayDict(
    ...     {
    ...         "observation": Array((2, 1), np.float32, full_size=4, padding=1),
    ...         "reward": Array((2, 1), np.float32, full_size=4),
    ...         "terminated": Array((2, 1), bool, full_size=4),
    ...         "truncated": Array((2, 1), bool, full_size=4),
    ...     }
    ... )
    >>> replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    >>> replay.restart()  # a sampler calls this and the next three methods
    >>> replay.begin_batch()
    >>> samples.rotate()
    >>> replay.end_batch()
    >>> with Prefetcher(replay, batch_size=8) as prefetcher:
    ...     minibatch = prefetcher.next()
    >>> minibatch["reward"].shape
    torch.Size([8])
    """

    def __init__(
        self,
        replay: BaseReplay[Any],
        batch_size: int,
        *,
        n_batches: int = 2,
        storage: str = "local",
        timeout_s: float = 60.0,
    ) -> None:
        _check(replay, n_batches, storage)
        self._replay = replay
        self._timeout_s, self._glance_s = timeout_s, timeout_s / _N_GLANCES
        self._stream = cuda.new_stream() if KINDS[storage].side == "gpu" else None
        self._batches: list[PrefetchedBatch] = [
            HostBatch(replay, batch_size)
            if self._stream is None
            else DeviceBatch(replay, batch_size, self._stream)
            for _ in range(n_batches)
        ]
        self._requests: _Requests = queue.SimpleQueue()
        self._results: _Results = queue.SimpleQueue()
        self._n_waiting = 0  # results that were asked for and not taken
        self._in_use: int | None = None
        self._is_closed = False
        # The thread has no reference to this object, so that an unused one is collected.
        arguments = (replay, self._batches, self._requests, self._results, self._stream)
        self._thread = threading.Thread(
            target=_fill_batches, args=arguments, name="parllel-prefetch", daemon=True
        )
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._requests.put, None)
        replay.watchers.add(self)

    @property
    def replay(self) -> BaseReplay[Any]:
        """The buffer whose minibatches these are."""
        return self._replay

    def next(self) -> ArrayDict:
        """Return the next minibatch, a tree as `ReplayBuffer.sample` gives it, until the next call.

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
            self._batches[used].release()
        if not self._n_waiting:
            for number in range(len(self._batches)):
                self._ask(number)
        elif used is not None:
            self._ask(used)
        result = self._await_result()
        if isinstance(result, Exception):
            self.discard()
            raise result
        self._in_use = result
        self._batches[result].take()
        return self._batches[result].tensors

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
        if not any(is_settled.wait(self._glance_s) for _ in range(_N_GLANCES)):
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
        """End the thread and free the minibatches' memory. Called again, it does nothing.

        Tensors that were taken stay valid, on a device and on the host.

        Raises:
            RuntimeError: the thread did not end in time; the memory is left to it.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._replay.watchers.discard(self)
        self._finalizer()
        for _ in range(_N_GLANCES):
            self._thread.join(self._glance_s)
        if self._thread.is_alive():
            raise RuntimeError(f"prefetcher: its thread did not end within {self._timeout_s} s")
        for batch in self._batches:
            batch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, number: int) -> None:
        self._n_waiting += 1
        self._requests.put(number)

    def _await_result(self) -> int | Exception:
        for _ in range(_N_GLANCES):
            with suppress(queue.Empty):
                result = self._results.get(timeout=self._glance_s)
                self._n_waiting -= 1
                return result
        raise self._too_late()

    def _check_thread(self) -> None:
        if not self._thread.is_alive():
            raise RuntimeError(
                "prefetcher: its thread does not run, as in a process that was forked from its own"
                " one; make a new prefetcher here"
            )

    def _too_late(self) -> RuntimeError:
        return RuntimeError(f"prefetcher: no minibatch came within {self._timeout_s} s = timeout_s")


class PrefetchedBatch(Protocol):
    """The memory of one minibatch, which the thread fills and the caller reads, in turn."""

    @property
    def tensors(self) -> ArrayDict:
        """The minibatch, after `take`."""

    def fill(self, replay: BaseReplay[Any]) -> None:
        """Draw a minibatch. The thread calls it, after the caller's `release`."""

    def take(self) -> None:
        """Let later work of the caller's current stream see the minibatch. The caller calls it."""

    def release(self) -> None:
        """Give the memory back to the thread, which fills it again. The caller calls it."""

    def finish(self) -> None:
        """Wait for the work that `fill` began. The thread calls it."""

    def close(self) -> None:
        """Free the memory, after `finish`. Tensors that were taken stay valid."""


class HostBatch:
    """A minibatch in host memory: it is there when `fill` returns, so nothing else is to be done.

    Args:
        replay: the buffer that draws it.
        batch_size: number of transitions.
    """

    def __init__(self, replay: BaseReplay[Any], batch_size: int) -> None:
        self._outputs = replay.make_memory(batch_size)

    @property
    def tensors(self) -> ArrayDict:
        """The minibatch."""
        tensors: ArrayDict = self._outputs.tensors
        return tensors

    def fill(self, replay: BaseReplay[Any]) -> None:
        """Draw and gather."""
        replay.sample_into(self._outputs)

    def take(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Free the memory."""
        self._outputs.close()


class DeviceBatch:
    """A minibatch on the device, which gets there by way of pinned memory.

    The host gathers it into pinned memory, and one copy in a stream of its own brings it to the
    device. Two events guard the memory: the pinned block is not written before the copy has read
    it, and the block on the device is not written before the caller's stream has passed `release`.

    Args:
        replay: the buffer that draws it.
        batch_size: number of transitions.
        stream: the stream of the copies.
    """

    def __init__(self, replay: BaseReplay[Any], batch_size: int, stream: cuda.Stream) -> None:
        self._outputs = replay.make_memory(batch_size, "pinned")
        specs = self._outputs.tree.apply(lambda leaf: leaf.spec)
        nbytes, dtype = self._outputs.memory.nbytes, np.dtype(np.uint8)
        on_device = allocate("device", nbytes)
        self.tree = specs.apply(Array.from_spec, on_device)  # laid out as in the pinned block
        self._present = FixedTensors(self.tree, self._outputs.present)
        self._pinned_bytes = self._outputs.memory.array(0, (nbytes,), dtype)
        self._device_bytes = on_device.array(0, (nbytes,), dtype)
        self._stream = stream
        self._is_copied = cuda.Event()
        self._is_free = cuda.Event().record()  # the zeros of the new memory come first

    @property
    def tensors(self) -> ArrayDict:
        """The minibatch; for elements of different length, the host waits for their number."""
        return self._present()

    def fill(self, replay: BaseReplay[Any]) -> None:
        """Draw and gather, then queue the copy. Before, the host waits for the last copy."""
        self._is_copied.synchronize()
        replay.sample_into(self._outputs)
        self._is_free.wait(self._stream)
        cuda.copy_to_device(self._pinned_bytes, out_device=self._device_bytes, stream=self._stream)
        self._is_copied.record(self._stream)

    def take(self) -> None:
        """Let the caller's current stream wait for the copy. The host does not wait."""
        self._is_copied.wait()

    def release(self) -> None:
        """Mark the point of the caller's current stream up to which the minibatch is read."""
        self._is_free.record()

    def finish(self) -> None:
        """Wait for the last copy."""
        self._is_copied.synchronize()

    def close(self) -> None:
        """Free the memory."""
        self._outputs.close()
        self.tree.close()


def _fill_batches(
    replay: BaseReplay[Any],
    batches: Sequence[PrefetchedBatch],
    requests: _Requests,
    results: _Results,
    stream: cuda.Stream | None,
) -> None:
    """Fill minibatches as they are asked for, until None is. Runs in the thread."""
    with cuda.device_of(stream):
        while (request := requests.get()) is not None:
            if isinstance(request, threading.Event):
                request.set()
                continue
            try:
                batches[request].fill(replay)
            except Exception as error:
                results.put(error)
            else:
                results.put(request)
        for batch in batches:
            batch.finish()


def _check(replay: BaseReplay[Any], n_batches: int, storage: str) -> None:
    if replay.side == "gpu":
        raise ValueError(
            "replay: its tree is in memory of the GPU; call sample(), which waits for nothing"
        )
    if n_batches < 2:
        raise ValueError(f"n_batches: got {n_batches}, expected 2 or more: one in use, one ahead")
    kinds = [storage_for("host"), storage_for("gpu")]
    if storage not in kinds:
        raise ValueError(f"storage: got {storage!r}, expected one of {kinds}")
