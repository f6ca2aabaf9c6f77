"""The action spaces of several agents, as parts of the space of an environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces


def space_of(
    space: spaces.Space[Any], agents: Sequence[Any], *, is_axis: bool
) -> dict[Any, spaces.Space[Any]]:
    """Return the space of each agent's actions.

    >>> space_of(spaces.MultiDiscrete([5, 5]), [0, 1], is_axis=True)[1]
    Discrete(5)

    Args:
        space: that of all agents: a Dict by their names; for an agent axis a Box [N, ...], or a
            MultiDiscrete [N] or [N, k].
        agents: the agents' names, or their places in the axis.
        is_axis: whether actions have an agent axis.

    Raises:
        TypeError: the space is of another kind.
        ValueError: it has other agents.
    """
    expected = f"{len(agents)} agents in an axis" if is_axis else f"a Dict of agents {list(agents)}"
    parts = _parts(space, is_axis=is_axis)
    if parts is None:
        raise TypeError(f"action space: got {space}, expected {expected}")
    if parts.keys() != set(agents):
        raise ValueError(f"action space: got agents {list(parts)}, expected {expected}")
    return {agent: parts[agent] for agent in agents}


def _parts(space: spaces.Space[Any], *, is_axis: bool) -> dict[Any, spaces.Space[Any]] | None:
    if not is_axis:
        return dict(space.items()) if isinstance(space, spaces.Dict) else None
    if isinstance(space, spaces.Box) and space.shape:
        each = zip(space.low, space.high, strict=True)
        return {
            place: spaces.Box(np.asarray(low), np.asarray(high), dtype=space.dtype.type)
            for place, (low, high) in enumerate(each)
        }
    if isinstance(space, spaces.MultiDiscrete):
        rows = zip(space.nvec, np.broadcast_to(space.start, space.nvec.shape), strict=True)
        return {
            place: spaces.MultiDiscrete(n, start=start)
            if np.ndim(n)
            else spaces.Discrete(int(n), start=int(start))
            for place, (n, start) in enumerate(rows)
        }
    return None
