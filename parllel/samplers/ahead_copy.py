"""AheadCopy: large observations go to a device by a copy engine, beside what the GPU computes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array
from parllel.storages import aligned, allocate
from parllel.tree import ArrayDict

# Observations of a staged step from so many bytes on are copied ahead, where groups take turns.
# An estimate: below it, a bus carries them in the time of a few launches. Not tuned on a GPU yet.
ENGINE_NBYTES = 2 * 2**20


class AheadCopy:
    """Brings the observations of one staged step after the other to memory of the device.

    A launch that reads page-locked memory over the bus keeps a part of the GPU's processors waiting
    for it. A copy in a stream of its own is made by a copy engine, while the processors work for
    the agent. It pays only where the agent has something to do meanwhile.

    There is one place on the device for all steps: `start` must not be called before the launches
    that read it have run, and the host must know that they have.

    Args:
        specs: tree of the specs of the rows, of any depth.

    Attributes:
        rows: the rows on the device, Arrays [B, ...]; `start` overwrites all of them.

    Example:
        >>> from parllel.arrays import ArraySpec
        >>> from parllel.testing import simulated_cuda
        >>> specs = ArrayDict({"observation": ArraySpec.of((2,), np.uint8)})
        >>> with simulated_cuda("lazy"):
        ...     ahead = AheadCopy(specs)
        ...     memory = allocate("pinned", ahead.nbytes)
        ...     memory.array(0, (2,), np.dtype(np.uint8))[...] = 5
        ...     ahead.start(memory.array(0, (ahead.nbytes,), np.dtype(np.uint8)))
        ...     ahead.order(cuda.current_stream())
        ...     ahead.rows["observation"].to_ndarray()
        array([5, 5], dtype=uint8)
    """

    def __init__(self, specs: ArrayDict) -> None:
        self.nbytes = nbytes_of_tree(specs)
        memory = allocate("device", self.nbytes)
        self.rows = specs.apply(Array.from_spec, memory)
        self._bytes = memory.array(0, (self.nbytes,), np.dtype(np.uint8))
        self.is_copied = cuda.Event()
        self._stream = cuda.new_stream()
        cuda.order_streams(cuda.current_stream(), self._stream)  # which writes zeros first

    def start(self, staged: NDArray[np.uint8]) -> None:
        """Queue the copy of a step. Returns at once.

        Args:
            staged: uint8 [nbytes], page-locked: the memory of rows that were placed as these are.
                It stays what it is until the event `is_copied` is reached.
        """
        cuda.copy_to_device(staged, out_device=self._bytes, stream=self._stream)
        self.is_copied.record(self._stream)

    def order(self, stream: cuda.Stream) -> None:
        """Make the later work of a stream wait for the copy. The host does not wait."""
        self.is_copied.wait(stream)

    def close(self) -> None:
        """Give the memory back. The copies, and what reads them, must be done."""
        self.rows.close()
        del self._bytes


def nbytes_of_tree(specs: ArrayDict) -> int:
    """Return the bytes of a block of memory that has room for all leaves of a tree of specs."""
    return sum(aligned(spec.nbytes) for _, spec in specs.walk())
