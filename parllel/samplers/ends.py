"""Ends: the ends of episodes in a batch that are told after its last step."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.tree import ArrayDict


class Ends(NamedTuple):
    """Ends of episodes in a batch whose observations are wanted, by step and column.

    >>> from parllel import Array
    >>> last = Array.from_numpy(np.arange(6.0).reshape(3, 2), n_batch_dims=2)
    >>> ends = Ends(np.array([0, 2]), np.array([1, 0]), np.array([False, True]), last)
    >>> ends.rows(ends.is_cut).to_ndarray().tolist()
    [4.0]

    Args:
        steps, columns: intp [k], where they are.
        is_cut: bool [k], which of them are truncated and not terminated.
        source: [T, B, ...] on the tree's side, with their last observations at these places.
    """

    steps: NDArray[np.intp]
    columns: NDArray[np.intp]
    is_cut: NDArray[np.bool_]
    source: Array | ArrayDict

    def rows(self, chosen: NDArray[np.bool_]) -> Any:  # Any: Rows, Arrays that are views
        """Return the last observations of some of the ends, as rows.

        Args:
            chosen: bool [k].
        """
        return self.source[self.steps[chosen], self.columns[chosen]]
