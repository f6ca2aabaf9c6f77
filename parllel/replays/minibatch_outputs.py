"""FixedTensors, output_spec: memory that minibatches are gathered to, and its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

from parllel.arrays import ArraySpec, PackedSpec
from parllel.ops.stack_gather import RowSource
from parllel.tree import ArrayDict


class FixedTensors:
    """Returns what a function makes of a tree of Arrays: the same tensors each time, if it can.

    Elements of different length are other views in each minibatch: where the tree has such leaves,
    all is made anew.

    >>> from parllel import Array
    >>> tensors = FixedTensors(ArrayDict({"reward": Array((2,), "float32")}), ArrayDict.to_torch)
    >>> tensors() is tensors()
    True

    Args:
        tree: Arrays.
        present: returns a tree of tensors over their memory.
    """

    def __init__(self, tree: ArrayDict, present: Callable[[ArrayDict], ArrayDict]) -> None:
        self._tree, self._present = tree, present
        is_fixed = all(leaf.place is not None for _, leaf in tree.walk())
        self._tensors = present(tree) if is_fixed else None

    def __call__(self) -> ArrayDict:
        """Return the tensors. In memory of a GPU, the host waits where lengths differ."""
        return self._present(self._tree) if self._tensors is None else self._tensors


def output_spec(source: RowSource, *batch_shape: int) -> ArraySpec:
    """Return the spec of the memory that a gather writes.

    Args:
        source: what it reads.
        batch_shape: leading dimensions of that memory.
    """
    if source.lengths is not None:
        capacity, *item_shape = source.frames.shape[1:]
        n_elements = math.prod(batch_shape)
        return PackedSpec.of((n_elements,), source.dtype, item_shape, capacity=capacity)
    return ArraySpec.of(batch_shape, source.dtype, source.shape[1:])
