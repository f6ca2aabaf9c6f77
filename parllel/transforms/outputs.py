"""Where a transform writes: an Array of its own, kept from batch to batch."""

from __future__ import annotations

from parllel.arrays import Array


def output_like(like: Array, kept: Array | None) -> Array:
    """Return the Array that was kept if it fits, else a new one in the same kind of memory.

    Args:
        like: of the batch; its visible shape, dtype and kind of memory count.
        kept: what this function returned for the batch before.
    """
    if kept is not None and _look(kept) == _look(like):
        return kept
    return like.new_array(padding=0, full_size=len(like))


def _look(array: Array) -> tuple[object, ...]:
    return array.shape, array.dtype, array.storage
