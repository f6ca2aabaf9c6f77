"""The contract of all transforms, and what they share: where they read, and where they write."""

from __future__ import annotations

import math
from typing import Protocol

from parllel import cuda
from parllel.arrays import Array
from parllel.cuda import AnyArray
from parllel.ops.sides import contiguous
from parllel.storages import Side
from parllel.tree import ArrayDict


class Transform(Protocol):
    """A step between sampling and learning.

    It returns a tree that shares the unchanged leaves of the batch. New leaves are its own
    Arrays, which its next call overwrites.

    >>> import numpy as np
    >>> from parllel import Array
    >>> class Shift:
    ...     def __call__(self, batch):
    ...         batch["reward"][...] = batch["reward"].to_ndarray() - 1
    ...         return batch
    >>> transform: Transform = Shift()
    >>> batch = ArrayDict({"reward": Array((2, 1), np.float32)})
    >>> transform(batch)["reward"].to_ndarray()
    array([[-1.],
           [-1.]], dtype=float32)
    """

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with what the transform adds or replaces."""


def side_of_leaves(**leaves: Array) -> Side:
    """Return the side that works on leaves of a batch, which are given by their names.

    Raises:
        ValueError: the host works on some leaves, and a GPU on others.
    """
    first, *others = [leaf.side for leaf in leaves.values()]
    if any(side != first for side in others):
        kinds = {name: leaf.storage for name, leaf in leaves.items()}
        raise ValueError(
            f"leaves live in {kinds}, expected all on the host or all on the device; move a tree"
            ' with tree.to("device")'
        )
    return first


def elements(array: Array) -> AnyArray:
    """Return an Array's elements over the same memory: NumPy's on the host, CuPy's on a GPU."""
    return array.to_cupy() if array.side == "gpu" else array.to_ndarray()


def contiguous_elements(array: Array) -> AnyArray:
    """Return an Array's elements C-contiguous: over the same memory where they are that."""
    return contiguous(elements(array))


def as_columns(values: AnyArray) -> AnyArray:
    """Return contiguous values [T, B, ...] as [T, columns], over the same memory."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def refuse_moving(name: str, leaf: Array) -> None:
    """Raise if a leaf is captured whose window moves: a graph would read where it lies now."""
    if leaf.side == "gpu" and leaf.full_size > len(leaf):
        cuda.refuse_capture(
            f"{name} of a ring with several windows (full_size {leaf.full_size}, T {len(leaf)})"
        )


def output_like(like: Array, kept: Array | None) -> Array:
    """Return the Array that was kept if it fits, else a new one in the same kind of memory.

    Args:
        like: a leaf of the batch; its visible shape, dtype and kind of memory count.
        kept: what this function returned for the batch before.
    """
    if kept is not None and _look(kept) == _look(like):
        return kept
    return like.new_array(padding=0, full_size=len(like))


def _look(array: Array) -> tuple[object, ...]:
    return array.shape, array.dtype, array.storage
