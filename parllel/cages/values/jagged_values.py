"""Values of different lengths as environments give them, checked, and made arrays [n, ...]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from parllel.cages.point_cloud import PointCloud
from parllel.cages.values.jagged_spaces import EDGES, LINKS, NODES
from parllel.tree import TreePath
from parllel.tree.fitting import MisfitError, describe

_WAY_OUT = "declare it in the environment's space, or wrap the environment"


def as_arrays(space: spaces.Space[Any], value: Any, path: TreePath = ()) -> Any:
    """Return a value with its jagged members as arrays [n, ...], or dictionaries of such arrays.

    Other members stay what they are. What does not fit the rows is told of where it is written;
    this tells of what the rows can't know: the largest number of points, the links of a graph.

    >>> space = spaces.Sequence(spaces.Discrete(9))
    >>> as_arrays(space, (3, 5)).tolist(), as_arrays(space, ()).shape
    ([3, 5], (0,))

    Args:
        space: the environment's space.
        value: what the environment gave.
        path: names of the value, for errors.

    Raises:
        MisfitError: a value is none of its jagged space.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping):
            return value  # told of where it is written
        parts = space.spaces
        return {
            name: as_arrays(parts[name], member, (*path, str(name))) if name in parts else member
            for name, member in value.items()
        }
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple):
            return value
        members = [*zip(space, value, strict=False)]
        own = [as_arrays(part, each, (*path, str(n))) for n, (part, each) in enumerate(members)]
        return (*own, *value[len(own) :])
    if isinstance(space, PointCloud):
        return _as_cloud(space, value, path)
    if isinstance(space, spaces.Graph):
        return _as_graph(space, value, path)
    return _as_sequence(space, value, path) if isinstance(space, spaces.Sequence) else value


def _as_cloud(space: PointCloud, value: Any, path: TreePath) -> NDArray[Any]:
    points = _as_rows(space.point_space, value, path)
    if not space.min_points <= len(points) <= space.max_points:
        raise MisfitError(
            f"{len(points)} points",
            f"from {space.min_points} to {space.max_points} of them, as its space has it",
            path=path,
            way_out=_WAY_OUT,
        )
    return points


def _as_graph(space: spaces.Graph, value: Any, path: TreePath) -> dict[str, NDArray[Any]]:
    """Return the arrays of a graph whose links are those of its own nodes."""
    missing = [name for name in (NODES, EDGES, LINKS) if not hasattr(value, name)]
    if missing:
        raise MisfitError(describe(value), "a GraphInstance (nodes, edges, edge_links)", path=path)
    nodes = _as_rows(space.node_space, value.nodes, (*path, NODES))
    links = _as_links(value.edge_links, len(nodes), (*path, LINKS))
    if space.edge_space is None:
        if value.edges is not None:
            raise MisfitError(
                describe(value.edges),
                "None, as its space has no edge_space",
                path=(*path, EDGES),
                way_out=_WAY_OUT,
            )
        return {NODES: nodes, LINKS: links}
    given = np.empty((0, *_shape(space.edge_space)), space.edge_space.dtype)
    edges = _as_rows(
        space.edge_space, given if value.edges is None else value.edges, (*path, EDGES)
    )
    if len(edges) != len(links):
        raise MisfitError(
            f"{len(edges)} edges and {len(links)} pairs of nodes in edge_links",
            "a pair for each edge",
            path=(*path, EDGES),
        )
    return {NODES: nodes, EDGES: edges, LINKS: links}


def _as_links(value: Any, n_nodes: int, path: TreePath) -> NDArray[Any]:
    """Return links as an array [n, 2] of numbers of a graph's own nodes."""
    if value is None:
        return np.empty((0, 2), np.int32)
    links = _as_array(value, path, f"integers [n, 2], numbers of its {n_nodes} nodes")
    if not links.size and links.ndim < 2:
        links = np.empty((0, 2), np.int32)  # an empty list
    if links.dtype.kind not in "iu" or links.ndim != 2 or links.shape[1] != 2:
        raise MisfitError(
            describe(value), f"integers [n, 2], numbers of its {n_nodes} nodes", path=path
        )
    is_wrong = (links < 0) | (links >= n_nodes)
    if is_wrong.any():
        row = int(is_wrong.any(-1).argmax())
        raise MisfitError(
            f"the link {links[row].tolist()} in row {row}",
            f"numbers of its own {n_nodes} nodes, from 0 to {n_nodes - 1}",
            path=path,
            way_out="links count within one graph; agents are given them shifted, where they are"
            " given several graphs at once",
        )
    return links


def _as_sequence(space: spaces.Sequence, value: Any, path: TreePath) -> Any:
    """Return the members of a sequence as one array, or as arrays by name."""
    if not space.stack and not isinstance(value, tuple | list):
        raise MisfitError(
            describe(value), f"a tuple of members of {space.feature_space}", path=path
        )
    arrays = (_stacked if space.stack else _columns)(space.feature_space, value, path)
    lengths = {len(each) for each in _leaves(arrays)}
    if len(lengths) > 1:
        raise MisfitError(
            f"members of {sorted(lengths)} rows", "as many rows in each member", path=path
        )
    return arrays


def _stacked(space: spaces.Space[Any], value: Any, path: TreePath) -> Any:
    """Return a sequence whose members are arrays [n, ...] already."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        return {
            str(name): _stacked(part, _member(value, name, path), (*path, str(name)))
            for name, part in parts
        }
    return _as_rows(space, value, path)


def _columns(space: spaces.Space[Any], values: Any, path: TreePath) -> Any:
    """Return a sequence whose members are values of their space, one after the other."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        return {
            str(name): _columns(
                part, [_member(value, name, path) for value in values], (*path, str(name))
            )
            for name, part in parts
        }
    if not len(values):
        return np.empty((0, *_shape(space)), space.dtype)
    return _as_rows(space, values, path)


def _member(value: Any, name: Any, path: TreePath) -> Any:
    try:
        return value[name]
    except (LookupError, TypeError) as error:
        raise MisfitError(
            f"keys {sorted(map(str, value))}" if isinstance(value, Mapping) else describe(value),
            f"a member {str(name)!r}",
            path=path,
        ) from error


def _as_rows(space: spaces.Space[Any], value: Any, path: TreePath) -> NDArray[Any]:
    """Return rows of a space as an array [n, *shape]; its dtype is compared where it is stored."""
    shape = _shape(space)
    expected = f"rows of shape {shape}, {space.dtype}"
    rows = _as_array(value, path, expected)
    if rows.ndim != 1 + len(shape) or rows.shape[1:] != shape:
        if not rows.size and rows.ndim == 1:  # an empty list
            return np.empty((0, *shape), space.dtype)
        raise MisfitError(describe(value), expected, path=path)
    return rows


def _as_array(value: Any, path: TreePath, expected: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] | None = None if value is None else np.asarray(value)
    except (ValueError, TypeError, AttributeError, OverflowError, RuntimeError):
        array = None  # its members are not alike, or it is no array at all
    if array is None or array.dtype.hasobject:
        raise MisfitError(describe(value), expected, path=path)
    return array


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    assert space.shape is not None  # check_jagged refuses others
    return space.shape


def _leaves(arrays: Any) -> list[NDArray[Any]]:
    if isinstance(arrays, Mapping):
        return [leaf for branch in arrays.values() for leaf in _leaves(branch)]
    return [arrays]
