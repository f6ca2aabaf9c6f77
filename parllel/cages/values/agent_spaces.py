"""How the spaces of agents make one space, how actions are divided, and masks of empty slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from parllel.cages.point_cloud import PointCloud
from parllel.cages.values.spaces import ACTION_MASK, flat_mask, n_choices
from parllel.tree import TreePath
from parllel.tree.fitting import MisfitError

_BATCHED = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def can_batch(space: spaces.Space[Any]) -> bool:
    """Tell whether there is a space of several such values as one array, or a tree of arrays."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = list(space.values() if isinstance(space, spaces.Dict) else space)
        return bool(parts) and all(map(can_batch, parts))
    return isinstance(space, _BATCHED)


def batch_of(space: spaces.Space[Any], n: int) -> spaces.Space[Any]:
    """Return the space of n values: arrays [n, ...], in which n Discrete make a MultiDiscrete.

    >>> batch_of(spaces.Discrete(4), 2)
    MultiDiscrete([4 4])
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(name, batch_of(part, n)) for name, part in space.items()])
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([batch_of(part, n) for part in space])
    dtype: Any = space.dtype
    if isinstance(space, spaces.Box):
        return spaces.Box(np.stack([space.low] * n), np.stack([space.high] * n), dtype=dtype)
    if isinstance(space, spaces.Discrete):
        starts = [int(space.start)] * n
        return spaces.MultiDiscrete([int(space.n)] * n, dtype=dtype, start=starts)
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = (np.stack([each] * n) for each in (space.nvec, space.start))
        return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)
    assert isinstance(space, spaces.MultiBinary)  # can_batch was asked
    return spaces.MultiBinary((n, *space.shape))


def part_of(space: spaces.Space[Any], values: Any, number: int) -> Any:
    """Return one of the values that are batched in arrays, like a sample of its own space.

    >>> part_of(spaces.Discrete(4), np.array([1, 3]), 1)
    np.int64(3)
    """
    if isinstance(space, spaces.Dict):
        return {name: part_of(part, values[name], number) for name, part in space.items()}
    if isinstance(space, spaces.Tuple):
        parts = zip(space, values, strict=True)
        return tuple(part_of(part, value, number) for part, value in parts)
    own = np.asarray(values, space.dtype)[number]
    return own if isinstance(space, spaces.Discrete) else np.asarray(own)


def with_mask(space: spaces.Space[Any], action_space: spaces.Space[Any]) -> spaces.Dict:
    """Return the space of an observation beside the mask of its agent's actions.

    Raises:
        TypeError: there is no mask of such actions.
    """
    mask = spaces.MultiBinary(sum(n_choices(action_space)))
    return spaces.Dict([("observation", space), (ACTION_MASK, mask)])


def move_mask(
    observation: Any, info: Mapping[str, Any], name: str, is_alive: bool, path: TreePath
) -> dict[str, Any]:
    """Return an agent's observation beside the mask that its info holds.

    Args:
        observation, info: what the environment gave to the agent.
        name: that of the info's entry.
        is_alive: whether the agent acts in the next step. Otherwise it needs no mask.
        path: the path of the observation, for errors.

    Raises:
        MisfitError: there is no mask for an agent that acts.
    """
    if name in info:
        return {"observation": observation, ACTION_MASK: np.asarray(info[name])}
    if is_alive:
        got = f"an info without {name!r}, which is the agent's info_mask"
        raise MisfitError(got, "the mask of its actions", path=path)
    return {"observation": observation}


def unmasked(space: spaces.Space[Any], action_space: spaces.Space[Any], observation: Any) -> Any:
    """Return an observation that no action follows: its mask allows all, if it allowed none."""
    if not isinstance(space, spaces.Dict) or ACTION_MASK not in space.spaces:
        return observation
    part = space[ACTION_MASK]
    has_mask = isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
    if not has_mask or not isinstance(observation, Mapping):
        return observation
    mask = observation.get(ACTION_MASK)
    if mask is None:
        return {**observation, ACTION_MASK: np.ones(part.shape or (), part.dtype)}
    counts, flat = n_choices(action_space), flat_mask(mask)
    is_whole = flat.size == sum(counts)
    if is_whole and all(choice.any() for choice in np.split(flat, np.cumsum(counts)[:-1])):
        return observation
    return {**observation, ACTION_MASK: np.ones(part.shape or (), part.dtype)}


def empty_value(space: spaces.Space[Any], action_space: spaces.Space[Any]) -> Any:
    """Return the observation of an empty slot: zeros, and a mask that allows all actions."""
    return unmasked(space, action_space, _zeros(space))


def as_observed(space: spaces.Space[Any], value: Any) -> Any:
    """Return an observation that was saved as plain data, with the types that its space has.

    >>> as_observed(spaces.Graph(spaces.Discrete(9), None), (np.array([4]), None, None)).nodes
    array([4])
    """
    if isinstance(space, spaces.Dict):
        return {name: as_observed(part, value[name]) for name, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(as_observed(*each) for each in zip(space, value, strict=True))
    return spaces.GraphInstance(*value) if isinstance(space, spaces.Graph) else value


def _zeros(space: spaces.Space[Any]) -> Any:
    """Return a value of zeros; of jagged spaces as short a one as there is."""
    if isinstance(space, spaces.Dict):
        return {name: _zeros(part) for name, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(map(_zeros, space))
    if isinstance(space, PointCloud):
        return np.stack([_zeros(space.point_space)] * max(space.min_points, 1))[: space.min_points]
    if isinstance(space, spaces.Sequence):
        return ()
    if isinstance(space, spaces.Graph):
        return spaces.GraphInstance(np.stack([_zeros(space.node_space)]), None, None)
    return np.zeros(space.shape or (), space.dtype)
