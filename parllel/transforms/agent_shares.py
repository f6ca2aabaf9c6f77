"""Shares of a quantity of several agents: the numbers whose moments are found together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.transforms.running_moments import RunningMoments
from parllel.tree import TreePath
from parllel.tree.agent_forms import N_BATCH, agents_of

ShareKey: TypeAlias = tuple[TreePath, tuple[int, ...]]
"""Which moments a share belongs to: the agents' names, and the place in their axis."""


class Share(NamedTuple):
    """Rows of a quantity whose moments are found together.

    Args:
        path: the agents' names of the leaf that it is of.
        key: which moments it belongs to: more shares than one may belong to the same.
        at: the place in the agent axis that `rows` show; () for the whole leaf.
        rows: float32 [T, B, ...], the leaf, or what it has of one agent.
        agents: trailing dimensions of the rows, each element of which has moments of its own.
        valid: bool [T, B] or of the shape of the rows: the ones that count; None for all.
    """

    path: TreePath
    key: ShareKey
    at: tuple[int, ...]
    rows: Array
    agents: tuple[int, ...]
    valid: NDArray[np.bool_] | None

    def fits(self, moments: RunningMoments) -> bool:
        """Tell whether moments are of such rows, in their kind of memory."""
        return (moments.storage, moments.mean.shape) == (self.rows.storage, self.agents)

    def write(self, moments: RunningMoments, out: Array, *, clip: float = math.inf) -> None:
        """Write normalized rows to their places in an Array like the leaf; 0 if none counts."""
        place = (slice(None), slice(None), *self.at) if self.at else ...
        if moments.is_empty:
            out[place] = 0
        elif self.at:
            out[place] = moments.normalize(self.rows, clip=clip)
        else:
            moments.normalize(self.rows, out=out, clip=clip)


def find_shares(
    leaves: Mapping[TreePath, Array],
    valid: Mapping[TreePath, NDArray[np.bool_] | None],
    *,
    per_agent: bool,
) -> list[Share]:
    """Return the shares of a quantity.

    Agents of an axis are one share, whose moments are found at once, where the same rows of each
    count; else each is a share of its own.

    Args:
        leaves: the leaves of the quantity, by agents' names.
        valid: for each leaf the rows that count, of all its agents or of each; None for all.
        per_agent: whether each agent has moments of its own, or all together have one.

    >>> axis = {(): Array((4, 3), np.float32, feature_shape=(2,))}
    >>> [share.agents for share in find_shares(axis, {(): None}, per_agent=True)]
    [(2,)]
    >>> alive = {(): np.ones((4, 3, 2), bool)}
    >>> [share.at for share in find_shares(axis, alive, per_agent=True)]
    [(0,), (1,)]
    """
    shares = []
    for path, leaf in leaves.items():
        agents, mask = agents_of(leaf), valid[path]
        if not per_agent:
            shares.append(Share(path, ((), ()), (), leaf, (), mask))
        elif mask is None or mask.ndim == N_BATCH:
            shares.append(Share(path, (path, ()), (), leaf, agents, mask))
        else:
            for at in np.ndindex(agents):
                own = (slice(None), slice(None), *at)
                shares.append(Share(path, (path, at), at, leaf[own], (), mask[own]))
    return shares
