"""BatchParts: the random parts of one batch, which are gathered one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.cuda import AnyArray
from parllel.ops.ragged import PackedRows
from parllel.ops.row_copy import prepare_gather
from parllel.ops.sides import copy_from_host, to_side
from parllel.ops.stack_gather import RowSource
from parllel.storages import Side
from parllel.tree import ArrayDict


class BatchParts:
    """A batch that is cut into random parts, in an order that lies where its rows are.

    `Minibatches.bind` makes it. On a device `gather` can be captured in a CUDA graph: a replay
    gathers by the order that `shuffle` wrote last. Keep the object as long as the graph.

    Args:
        batch: the tree of the rows.
        sources: for each leaf its rows, with T and B as one dimension.
        outputs: for each leaf the memory of a minibatch, as gathers write it.
        names: for each leaf a name, by which errors call it.
        rows: int64 [n_rows], the rows to visit.
        rng: generator of the order.
        size: number of rows of a part.
        present: returns the outputs as a tree of torch tensors.
        side: "host" or "gpu", which of them gathers.
        n_shifted: parts whose images are shifted at random: none, or all of them.

    >>> from parllel.replays import Minibatches
    >>> batch = ArrayDict({"reward": Array.from_numpy(np.arange(6).reshape(3, 2))})
    >>> parts = Minibatches(2, np.random.default_rng(0)).bind(batch)
    >>> parts.shuffle()
    >>> sorted(number for each in range(2) for number in parts.gather(each)["reward"].tolist())
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        batch: ArrayDict,
        sources: Sequence[RowSource],
        outputs: Sequence[AnyArray | PackedRows],
        names: Sequence[str],
        *,
        rows: NDArray[np.int64],
        rng: np.random.Generator,
        size: int,
        present: Callable[[], ArrayDict],
        side: Side,
        n_shifted: int = 0,
    ) -> None:
        self._windows = [(leaf, leaf.window_begin) for _, leaf in batch.walk() if _is_moving(leaf)]
        self._seeds: AnyArray | None = None  # int64 [n_parts, 3]: a key, and the number of a part
        if n_shifted:
            self._seeds = to_side(np.zeros((n_shifted, 3), np.int64), side)
        self._gather = prepare_gather(outputs, sources, names=names)
        self._rows, self._rng, self._side = rows, rng, side
        self._order: AnyArray | None = None
        self._size = size
        self._n_parts = self._count_parts()
        self._present = present

    def _count_parts(self) -> int:
        return len(self._rows) // self._size

    def _arrange(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of all parts in turn, for a random order of what is divided."""
        return order

    def shuffle(self) -> None:
        """Draw a new order of the rows. On a device it is one copy, and can't be captured.

        Raises:
            RuntimeError: the batch's window has moved since `bind`: its rows lie elsewhere.
        """
        if any(leaf.window_begin != begin for leaf, begin in self._windows):
            raise RuntimeError("minibatches: the window of the batch has moved; bind it again")
        order = self._arrange(self._rng.permutation(self._rows))
        if self._order is None or self._side == "host":
            self._order = to_side(order, self._side)
        else:
            copy_from_host(order, out=self._order)  # where a graph reads it
        if self._seeds is not None:
            seeds = np.empty(self._seeds.shape, np.int64)
            seeds[:, :2] = self._rng.integers(2**32, size=2)
            seeds[:, 2] = range(len(seeds))
            copy_from_host(seeds, out=self._seeds)

    def gather(self, number: int) -> ArrayDict:
        """Return a part of the batch, in the memory of the part before.

        In host memory it is there when this returns; on a device it is one launch in the caller's
        current stream. Where elements have different lengths, the host waits for the number of
        their items.

        Args:
            number: which part, from 0 on.

        Raises:
            IndexError: there is no such part.
            RuntimeError: `shuffle` was not called before.
        """
        if self._order is None:
            raise RuntimeError("minibatches: there is no order of the rows; call shuffle before")
        if not 0 <= number < self._n_parts:
            raise IndexError(f"number: got {number}, expected a part below {self._n_parts}")
        rows = self._order[number * self._size : (number + 1) * self._size]
        self._gather(rows, None if self._seeds is None else self._seeds[number])
        return self._present()


def _is_moving(leaf: object) -> bool:
    return isinstance(leaf, Array) and leaf.full_size > len(leaf)
