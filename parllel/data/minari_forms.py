"""What a data set of Minari has in common with a ring: the spaces that fit a tree, exact values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from parllel.cages import bounds_of
from parllel.replays import ReplayBuffer
from parllel.tree import ArrayDict, TreePath, path_text
from parllel.tree.fitting import MisfitError, fit

BRANCHES = ("observation", "action", "reward", "terminated", "truncated")
"""The branches that a data set has places for; others are infos."""

WHOLE = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""The spaces of whole numbers."""


def check_tree(replay: ReplayBuffer, places: Mapping[str, spaces.Space[Any]]) -> None:
    """Raise unless branches of the tree have the form of spaces."""
    if replay.agents is not None:
        raise TypeError("minari: the ring has several agents, expected one, as data sets have")
    if missing := sorted(set(BRANCHES) - set(replay.samples)):
        raise ValueError(f"samples: branches {missing} are missing")
    for name, space in places.items():
        check_space((name,), space, replay.samples[name])


def check_space(path: TreePath, space: spaces.Space[Any], branch: Any) -> None:  # Any: a leaf
    """Raise unless a branch of the tree has the form of a space; names have to do for files."""
    members = members_of(space)
    if members is not None:
        names = sorted(branch) if isinstance(branch, ArrayDict) else None
        if names != sorted(members):
            got = "one leaf" if names is None else f"branches {names}"
            raise ValueError(f"{path_text(path)}: the tree has {got}, the space {sorted(members)}")
        for name, part in members.items():
            check_name((*path, name))
            check_space((*path, name), part, branch[name])
        return
    if not isinstance(space, (spaces.Box, *WHOLE)):
        raise TypeError(
            f"{path_text(path)}: got {space}, expected Box, Discrete, MultiDiscrete, MultiBinary,"
            " or a Dict or Tuple of these: others have no place in a data set and in a ring"
        )
    if isinstance(branch, ArrayDict) or branch.shape[2:] != space.shape:
        got = f"branches {sorted(branch)}" if isinstance(branch, ArrayDict) else branch.shape[2:]
        raise ValueError(f"{path_text(path)}: the tree has {got}, the space {space.shape}")


def check_name(path: TreePath) -> None:
    """Raise where the last name of a path would be another one, or none, in a file."""
    if path[-1] in ("", ".") or "/" in path[-1]:
        raise ValueError(
            f"{path_text(path)}: got the name {path[-1]!r}, expected one without '/' that is not"
            " '.': rename it, as files of data sets have such names of their own"
        )


def members_of(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]] | None:
    """Return the members of a space by the names of branches; None where it has none."""
    if isinstance(space, spaces.Dict):
        return {str(name): part for name, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return {str(number): part for number, part in enumerate(space)}
    return None


def has_leaves(branch: Any) -> bool:  # Any: a leaf
    """Whether a branch is a leaf or a tree that has any."""
    return not isinstance(branch, ArrayDict) or any(True for _ in branch.walk())


def fit_rows(
    path: TreePath, value: Any, shape: tuple[int, ...], dtype: Any, *, finite: bool = True
) -> NDArray[Any]:
    """Return a value as an array of a shape and a dtype with nothing lost, and finite."""
    try:
        rows = fit(value, shape, dtype)
    except MisfitError as error:
        error.path = path
        raise
    if finite:
        check_finite(path, rows)
    return rows


def check_range(path: TreePath, space: spaces.Space[Any], rows: NDArray[Any]) -> None:
    """Raise where whole numbers are none of a space of such."""
    if isinstance(space, WHOLE):
        low, high = bounds_of(space)
        if not ((low <= rows) & (rows <= high)).all():
            raise ValueError(
                f"{path_text(path)}: got {rows.min()} to {rows.max()}, expected values of {space}"
            )


def check_finite(path: TreePath, rows: NDArray[Any]) -> None:
    """Raise where floats are NaN or infinite."""
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise ValueError(f"{path_text(path)}: got a NaN or an infinity, expected finite numbers")
