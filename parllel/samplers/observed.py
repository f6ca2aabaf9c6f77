"""Observed: the observations of a batch, for an agent that learns of observations as such."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from parllel.cages import AgentForm
from parllel.samplers.group import Group
from parllel.samplers.new_rows import as_rows
from parllel.tree import Rows, dict_map, leaves_of


class Observed:
    """Collect what the rows of a batch's observations do not tell: other rows, and final ones.

    Args:
        n_steps, n_envs: T and B of the batch.
        agents: the form of agents who come and go; None where there are none.

    >>> Observed(4, 2).final_rows(like=None) is None
    True
    """

    def __init__(self, n_steps: int, n_envs: int, agents: AgentForm | None = None) -> None:
        shape = n_steps, n_envs
        self._agents = agents if agents is not None and agents.has_flags else None
        self._valid: Any = (
            np.ones(shape, np.bool_)
            if self._agents is None
            else dict_map(np.ones_like, self._agents.flag_rows(shape))
        )
        self._final: list[Any] = []

    def add(self, t: int, group: Group) -> None:
        """Take what a group's step t has, which has come to its end."""
        if self._agents is not None:
            columns = slice(group.columns.start, group.columns.stop)
            self._valid[t, columns] = group.host_rows(t)["valid"].to_ndarray()
        elif invalid := group.invalid():
            self._valid[t, invalid] = False
        self._final += group.final_obs().values()

    def add_final(self, observations: Iterable[Any]) -> None:
        """Take final observations that no step has told of."""
        self._final += observations

    @property
    def valid(self) -> Any:
        """Which rows are transitions, bool [T, B]; None for all.

        Of agents who come and go, which of them act: [T, B, N], or a dictionary of the names.
        """
        return None if all(leaf.all() for _, leaf in leaves_of(self._valid)) else self._valid

    def final_rows(self, like: Rows) -> Rows | None:
        """Return the final observations as rows [k, ...], by step and column; None for none.

        Args:
            like: rows [B, ...] of the tree's `observation`.
        """
        return as_rows(self._final, like) if self._final else None
