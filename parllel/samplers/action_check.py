"""ActionCheck: whether an agent's actions are what the environments take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from parllel.arrays import Leaf
from parllel.arrays.interop import to_host
from parllel.cages import bounds_of
from parllel.tree import ArrayDict, TreePath, path_text
from parllel.tree.errors import raise_at

_PATH: TreePath = ("action",)


class ActionCheck:
    """Compare actions with the space of the environments, and the rows that they are written to.

    NumPy would spread actions [B] over rows [B, k], and cut off what follows the point where the
    rows are integers.

    >>> check = ActionCheck(spaces.Discrete(2), n_envs=3)
    >>> check(np.array([0, 1, 1]))
    >>> check(np.array([0.5, 1.0, 0.0]))
    Traceback (most recent call last):
    TypeError: action: got float64, expected integers for Discrete(2)

    Args:
        space: the space of a single environment's actions.
        n_envs: number of environments.
        agents: their names, where actions have an axis of them behind that of environments.
    """

    def __init__(self, space: gym.Space[Any], n_envs: int, *, agents: Sequence[str] = ()) -> None:
        self._space = space
        self._n_envs = n_envs
        self._agents = agents

    def check_rows(self, rows: Leaf | ArrayDict) -> None:
        """Compare the tree's branch `action` with the space.

        Args:
            rows: Array [T, B, ...], or a tree of such.

        Raises:
            TypeError: the rows are of another kind: floats for integers, or the reverse.
            ValueError: they have another shape or other branches, or can't hold the space's bounds.
        """
        for path, space, leaf in _parts(self._space, rows, _PATH):
            shape = tuple(leaf.shape[2:])
            _check_shape(path, shape, space, "rows of the tree", ())
            _check_kind(path, np.dtype(leaf.dtype), space)
            _check_range(path, np.dtype(leaf.dtype), space)

    def __call__(self, action: object, *, bounds: bool = False) -> None:
        """Compare what an agent returned with the space. Values on a device are copied to the host.

        Args:
            action: n rows, or a tree of such.
            bounds: whether to compare fractions with the bounds of a Box too. Integers out of range
                and NaN are refused in any case.

        Raises:
            TypeError: floats for integers, a tuple, or something that is no number.
            ValueError: another shape, other branches, NaN, or a value outside of the space.
        """
        for path, space, leaf in _parts(self._space, action, _PATH):
            try:
                values = np.asarray(to_host(leaf))
            except Exception as error:
                raise_at(path, error)
            _check_shape(path, values.shape, space, "the agent's action", (self._n_envs,))
            _check_kind(path, values.dtype, space)
            _check_values(path, values, space, self._agents, bounds=bounds)


def _parts(space: gym.Space[Any], rows: Any, path: TreePath) -> list[tuple[TreePath, Any, Any]]:
    """Return the leaves of a space, each with its path and the rows of the same name."""
    if isinstance(rows, tuple):  # a tree is written by names, and rows are no parts of one action
        is_leaf = not isinstance(space, spaces.Dict | spaces.Tuple)
        way_out = "an array or a list" if is_leaf else "a mapping, with the names '0', '1', ..."
        raise TypeError(f"{path_text(path)}: got a tuple, expected {way_out} for {space}")
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        if isinstance(rows, Mapping):
            raise ValueError(
                f"{path_text(path)}: got branches {list(rows)}, expected rows of {space}"
            )
        return [(path, space, rows)]
    named = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
    members = {str(name): part for name, part in named}
    if not isinstance(rows, Mapping) or set(rows) != set(members):
        got = f"branches {list(rows)}" if isinstance(rows, Mapping) else f"a {type(rows).__name__}"
        raise ValueError(f"{path_text(path)}: got {got}, expected branches {list(members)}")
    return [
        found for name, part in members.items() for found in _parts(part, rows[name], (*path, name))
    ]


def _check_shape(
    path: TreePath,
    shape: tuple[int, ...],
    space: gym.Space[Any],
    what: str,
    leading: tuple[int, ...],
) -> None:
    expected = (*leading, *(space.shape or ()))
    if shape != expected:
        raise ValueError(
            f"{path_text(path)}: got shape {shape} of {what}, expected {expected} for {space}"
        )


def _check_kind(path: TreePath, dtype: np.dtype[Any], space: gym.Space[Any]) -> None:
    is_float = space.dtype is not None and space.dtype.kind == "f"
    kinds, expected = ("biuf", "numbers") if is_float else ("biu", "integers")
    if dtype.kind not in kinds:
        raise TypeError(f"{path_text(path)}: got {dtype}, expected {expected} for {space}")


def _check_range(path: TreePath, dtype: np.dtype[Any], space: gym.Space[Any]) -> None:
    """Refuse rows whose dtype can't hold the actions of a space."""
    is_float = space.dtype is not None and space.dtype.kind == "f"
    if is_float:
        is_held = dtype.kind == "f"
    else:
        limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        low, high = bounds_of(space)
        is_held = bool((low >= limits[0]).all() and (high <= limits[1]).all())
    if not is_held:
        raise ValueError(
            f"{path_text(path)}: got rows of {dtype}, expected a dtype that holds {space}, such as"
            " build_sample_tree makes"
        )


def _check_values(
    path: TreePath,
    values: NDArray[Any],
    space: gym.Space[Any],
    agents: Sequence[str],
    *,
    bounds: bool,
) -> None:
    is_wrong = np.zeros(values.shape, np.bool_)
    if values.dtype.kind == "f":
        is_wrong |= np.isnan(values)
    is_integer = space.dtype is not None and space.dtype.kind in "iub"
    if bounds or is_integer:  # rows of integers would wrap; fractions are often clipped later
        low, high = bounds_of(space)
        if values.dtype.kind == "f":  # a bound that was rounded to the values' dtype is within
            low, high = low.astype(values.dtype), high.astype(values.dtype)
        is_wrong |= (values < low) | (values > high)
    if is_wrong.any():
        place = tuple(np.argwhere(is_wrong)[0])[: 2 if agents else 1]
        origin = f"environment {place[0]} of the agent's action"
        if agents:
            origin = f"agent {agents[place[1]]} in {origin}"
        raise ValueError(
            f"{path_text(path)}: got {values[place]!r} for {origin}, expected a value of {space}"
        )
