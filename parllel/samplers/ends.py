"""Ends: the ends of episodes in a batch that are told after its last step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array
from parllel.ops.row_copy import RowCopy
from parllel.ops.sides import AnyIndex
from parllel.tree import ArrayDict, dict_map, leaves_of, path_text


class Ends:
    """Ends of episodes in a batch whose observations are wanted, by step and column.

    >>> last = Array((3, 2), np.float32)
    >>> last[...] = np.arange(6.0).reshape(3, 2)
    >>> ends = Ends(np.array([0, 2]), np.array([1, 0]), np.array([False, True]), last)
    >>> ends.rows().to_ndarray().tolist()
    [1.0, 4.0]
    >>> cut = ends.cut()
    >>> out = Array((3, 2), np.float32)
    >>> cut.write([7.0], out=out)
    >>> out.to_ndarray().tolist()
    [[0.0, 0.0], [0.0, 0.0], [7.0, 0.0]]

    Args:
        steps, columns: intp [k], where they are.
        is_cut: bool [k], which of them are truncated and not terminated.
        source: [T, B, ...] on the tree's side, with their last observations at these places.
    """

    def __init__(
        self,
        steps: NDArray[np.intp],
        columns: NDArray[np.intp],
        is_cut: NDArray[np.bool_],
        source: Array | ArrayDict,
    ) -> None:
        self.steps = steps
        self.columns = columns
        self.is_cut = is_cut
        self._source = source
        self._index: AnyIndex | None = None  # rows of [T * B], where the tree's side reads them

    def __len__(self) -> int:
        return len(self.steps)

    def cut(self) -> Ends:
        """Return those that are truncated and not terminated."""
        if self.is_cut.all():
            return self
        chosen = self.is_cut
        return Ends(self.steps[chosen], self.columns[chosen], chosen[chosen], self._source)

    def rows(self) -> Any:  # Any: Arrays, or a tree of them
        """Return the last observations as new rows [k, ...] on the tree's side: one launch."""
        rows: Any = dict_map(self._new_rows, self._source)
        leaves = list(leaves_of(self._source))
        read = [_flat(leaf) for _, leaf in leaves]
        written = [_memory(leaf) for _, leaf in leaves_of(rows)]
        names = [path_text(path) for path, _ in leaves]
        RowCopy(written, read, names=names).run(range(len(self)), self._where(leaves[0][1]))
        return rows

    def write(self, values: object, *, out: Array) -> None:
        """Write a value of each end to its place: one launch, and what makes rows of the values.

        Args:
            values: k numbers of any library.
            out: Array [T, B] on the tree's side; its other rows stay as they are.
        """
        rows = self._new_rows(out)
        rows[...] = values
        RowCopy([_flat(out)], [_memory(rows)]).run(self._where(out), range(len(self)))

    def _new_rows(self, leaf: Array) -> Array:
        storage = "local" if leaf.is_on_host else "device"
        return Array((len(self),), leaf.dtype, feature_shape=leaf.shape[2:], storage=storage)

    def _where(self, like: Array) -> AnyIndex:
        if self._index is None:
            rows = self.steps * like.shape[1] + self.columns
            self._index = rows if like.is_on_host else cuda.to_device(rows.astype(np.int64))
        return self._index


def _memory(leaf: Array) -> Any:  # Any: an array of NumPy or CuPy
    return leaf.to_ndarray() if leaf.is_on_host else leaf.to_cupy()


def _flat(leaf: Array) -> Any:  # Any: as above
    """Return the rows of all steps and environments, [T * B, ...], without a copy."""
    rows = _memory(leaf)
    return rows.reshape(rows.shape[0] * rows.shape[1], *rows.shape[2:])
