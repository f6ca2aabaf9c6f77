"""Observed: the observations of a batch, for an agent that learns of observations as such."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.samplers.group import Group
from parllel.samplers.new_rows import as_rows
from parllel.tree import Rows


class Observed:
    """Collect what the rows of a batch's observations do not tell: other rows, and final ones.

    Args:
        n_steps, n_envs: T and B of the batch.

    >>> Observed(4, 2).final_rows(like=None) is None
    True
    """

    def __init__(self, n_steps: int, n_envs: int) -> None:
        self._valid: NDArray[np.bool_] = np.ones((n_steps, n_envs), np.bool_)
        self._final: list[Any] = []

    def add(self, t: int, group: Group) -> None:
        """Take what a group's step t has, which has come to its end."""
        if invalid := group.invalid():
            self._valid[t, invalid] = False
        self._final += group.final_obs().values()

    def add_final(self, observations: Iterable[Any]) -> None:
        """Take final observations that no step has told of."""
        self._final += observations

    @property
    def valid(self) -> NDArray[np.bool_] | None:
        """Which rows are transitions, bool [T, B]; None for all."""
        return None if self._valid.all() else self._valid

    def final_rows(self, like: Rows) -> Rows | None:
        """Return the final observations as rows [k, ...], by step and column; None for none.

        Args:
            like: rows [B, ...] of the tree's `observation`.
        """
        return as_rows(self._final, like) if self._final else None
