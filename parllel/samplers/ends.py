"""Ends: the ends of episodes in a batch that are told after its last step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.tree import Rows


class Ends(NamedTuple):
    """Ends of episodes in a batch whose observations are wanted, by step and column.

    >>> where = np.array([0]), np.array([1])
    >>> Ends(*where, is_cut=np.array([True]), rows=np.zeros((1, 3))).steps
    array([0])

    Args:
        steps, columns: intp [k], where they are.
        is_cut: bool [k], which of them are truncated and not terminated.
        rows: their last observations, rows [k, ...] on the tree's side.
    """

    steps: NDArray[np.intp]
    columns: NDArray[np.intp]
    is_cut: NDArray[np.bool_]
    rows: Rows
