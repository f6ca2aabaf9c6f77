"""Slots: places of minibatches that one thread fills while another one reads the others."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from parllel import cuda
from parllel.arrays import Array
from parllel.replays.replay_buffer import ReplayBuffer
from parllel.storages import allocate
from parllel.tree import ArrayDict


class Slot(Protocol):
    """Memory of one minibatch."""

    tensors: ArrayDict

    def fill(self, replay: ReplayBuffer) -> None:
        """Draw a minibatch; by the thread that fills, after `release`."""

    def take(self) -> None:
        """Make what follows in the caller's current stream see the minibatch; by who reads."""

    def release(self) -> None:
        """Give the memory back to be filled; by who reads."""

    def finish(self) -> None:
        """Wait until what `fill` began is done; by the thread that fills."""

    def close(self) -> None:
        """Free the memory, after `finish`. What was taken stays valid."""


class HostSlot:
    """A minibatch in host memory.

    Args:
        replay: draws it.
        batch_size: number of transitions.
    """

    def __init__(self, replay: ReplayBuffer, batch_size: int) -> None:
        self._outputs = replay.make_outputs(batch_size)
        self.tensors = self._outputs.tensors

    def fill(self, replay: ReplayBuffer) -> None:
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


class DeviceSlot:
    """A minibatch on the device, which gets there by way of pinned memory.

    The host gathers it into pinned memory, and one copy in a stream of its own brings it to the
    device. Two events guard the memory: the pinned one is not written before the copy has read
    it, and that on the device is not written before the reader's stream has passed `release`.

    Args:
        replay: draws it.
        batch_size: number of transitions.
        stream: for the copies.
    """

    def __init__(self, replay: ReplayBuffer, batch_size: int, stream: Any) -> None:
        self._outputs = replay.make_outputs(batch_size, "pinned")
        specs = self._outputs.tree.apply(lambda leaf: leaf.spec)
        nbytes, dtype = self._outputs.memory.nbytes, np.dtype(np.uint8)
        on_device = allocate("device", nbytes)
        self.tree = specs.apply(Array.from_spec, on_device)  # placed as in the pinned block
        self.tensors = self.tree.to_torch()
        self._pinned_bytes = self._outputs.memory.array(0, (nbytes,), dtype)
        self._device_bytes = on_device.array(0, (nbytes,), dtype)
        self._stream = stream
        self._is_copied = cuda.Event()
        self._is_free = cuda.Event().record()  # the zeros of the new memory come first

    def fill(self, replay: ReplayBuffer) -> None:
        """Draw and gather, then queue the copy. The host waits for the slot's last copy before."""
        self._is_copied.synchronize()
        replay.sample_into(self._outputs)
        self._is_free.wait(self._stream)
        cuda.copy_to_device(self._pinned_bytes, out_device=self._device_bytes, stream=self._stream)
        self._is_copied.record(self._stream)

    def take(self) -> None:
        """Let the caller's current stream wait for the copy. The host does not."""
        self._is_copied.wait()

    def release(self) -> None:
        """Mark in the caller's current stream what has read the minibatch."""
        self._is_free.record()

    def finish(self) -> None:
        """Wait for the last copy."""
        self._is_copied.synchronize()

    def close(self) -> None:
        """Free the memory."""
        self._outputs.close()
        self.tree.close()
