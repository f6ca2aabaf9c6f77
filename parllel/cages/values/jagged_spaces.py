"""Spaces whose values have different lengths: which leaves they have; not their values.

These are `PointCloud`, and gymnasium's `Graph` and `Sequence`. A cloud, and a sequence of arrays,
is one leaf. A graph is a branch of the leaves `nodes`, `edges` and `edge_links`; a sequence of
members of a Dict or a Tuple is a branch, too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from gymnasium import spaces

from parllel.cages.point_cloud import PointCloud
from parllel.tree import ArrayDict, TreePath, path_text

Capacities: TypeAlias = "int | Mapping[str, Capacities] | None"
"""The largest length of a leaf's elements; or a mapping of names below a branch to it."""

NODES, EDGES, LINKS = "nodes", "edges", "edge_links"


class JaggedForm(NamedTuple):
    """The form of a leaf whose elements [n, *shape] have different lengths n.

    >>> JaggedForm(spaces.Box(-1, 1, (3,)), 64).capacity
    64

    Args:
        space: the space of one row of an element: of a point, a node, or a member of a sequence.
        capacity: the largest length, if the space has one or it was given; else None.
    """

    space: spaces.Space[Any]
    capacity: int | None


def is_jagged(space: object) -> bool:
    """Whether the values of a space itself have different lengths; not those of its members."""
    return isinstance(space, PointCloud | spaces.Graph | spaces.Sequence)


def has_jagged(space: object) -> bool:
    """Whether values of a space, or of any of its members, have different lengths.

    >>> has_jagged(spaces.Dict(cloud=PointCloud(8), speed=spaces.Box(0, 1)))
    True
    """
    if isinstance(space, spaces.Dict):
        return any(map(has_jagged, space.values()))
    return any(map(has_jagged, space)) if isinstance(space, spaces.Tuple) else is_jagged(space)


def part_of(space: object, name: str) -> object:
    """Return the space of a member by its branch's name; leaves of a jagged space have the space.

    >>> part_of(spaces.Tuple([spaces.Discrete(2), PointCloud(8)]), "1")
    PointCloud(0 to 8 points of (3,), float32)
    """
    if isinstance(space, spaces.Dict):
        return space.spaces.get(name)
    if isinstance(space, spaces.Tuple):
        return space[int(name)] if name.isdecimal() and int(name) < len(space) else None
    return space if is_jagged(space) else None


def rows_of_elements(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """Return the space of one row of each leaf or branch of a jagged space, by name.

    The only leaf of a cloud or of a sequence has the name "".

    >>> rows_of_elements(spaces.Graph(spaces.Box(0, 1, (3,)), None))["edge_links"].shape
    (2,)
    """
    if isinstance(space, PointCloud):
        return {"": space.point_space}
    if isinstance(space, spaces.Sequence):
        return {"": space.feature_space}
    assert isinstance(space, spaces.Graph)
    edges = {} if space.edge_space is None else {EDGES: space.edge_space}
    links = spaces.Box(0, np.iinfo(np.int32).max, (2,), np.int32)
    return {NODES: space.node_space, **edges, LINKS: links}


def jagged_forms(
    space: spaces.Space[Any], capacity: Capacities, path: TreePath
) -> JaggedForm | dict[str, Any]:  # Any: forms, or dictionaries of them
    """Return the form of each leaf of a jagged space: one form, or a dictionary by name.

    Args:
        space: a space for which `is_jagged`.
        capacity: as given by the program, for this branch; None where it gave nothing.
        path: names of the branch, for errors.

    Raises:
        TypeError: the capacity is of another form than the space's leaves.
        ValueError: a capacity is negative, or of a branch that the space has not.
    """
    if isinstance(space, PointCloud):
        most = space.max_points
        return JaggedForm(space.point_space, most if capacity is None else _count(capacity, path))
    if isinstance(space, spaces.Sequence):
        return _forms_of_sequence(space.feature_space, capacity, path)
    rows = rows_of_elements(space)
    given: dict[str, Any] = dict(_mapping(capacity, path, (NODES, EDGES)))
    if EDGES in given:
        given[LINKS] = given[EDGES]  # as many as edges, by definition
    return {
        name: JaggedForm(row, None if name not in given else _count(given[name], (*path, name)))
        for name, row in rows.items()
    }


def _forms_of_sequence(
    space: spaces.Space[Any], capacity: Capacities, path: TreePath
) -> JaggedForm | dict[str, Any]:
    """Return the forms of a sequence; all members of a Dict or Tuple have its length."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        return {
            str(name): _forms_of_sequence(part, capacity, (*path, str(name)))
            for name, part in parts
        }
    return JaggedForm(space, None if capacity is None else _count(capacity, path))


def _count(capacity: Capacities, path: TreePath) -> int:
    try:
        number = operator.index(capacity)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"capacity: got {capacity!r} for {path_text(path)}, expected an integer, the largest"
            " length of its elements"
        ) from None
    if number < 1:
        raise ValueError(f"capacity: got {number} for {path_text(path)}, expected 1 or more")
    return number


def _mapping(
    capacity: Capacities, path: TreePath, names: tuple[str, ...]
) -> Mapping[str, Capacities]:
    if capacity is None:
        return {}
    if not isinstance(capacity, Mapping):
        example = ", ".join(f"{name!r}: {capacity}" for name in names)
        raise TypeError(
            f"capacity: got {capacity!r} for {path_text(path)}, which has several leaves; name"
            f" them, as in {{{example}}}"
        )
    if unknown := sorted(set(capacity) - set(names)):
        raise ValueError(
            f"capacity: got {unknown}, expected names of {path_text(path)}: {list(names)}"
        )
    return capacity


def check_jagged(space: spaces.Space[Any], path: TreePath) -> None:
    """Refuse a jagged space whose elements have no rows of one shape.

    Raises:
        TypeError: there is such a part, or it is a space of actions; the message has its path.
    """
    if path[:1] == ("action",):
        raise TypeError(
            f"{path_text(path)}: got {space}, whose values have different lengths, as only"
            " observations may; wrap the environment"
        )
    for name, row in rows_of_elements(space).items():
        parts: list[tuple[Any, spaces.Space[Any]]] = [(name, row)]
        if isinstance(space, spaces.Sequence) and isinstance(row, spaces.Dict | spaces.Tuple):
            parts = list(row.items() if isinstance(row, spaces.Dict) else enumerate(row))
        for part_name, part in parts:
            if part.shape is None or part.dtype is None or is_jagged(part):
                raise TypeError(
                    f"{path_text((*path, str(part_name)) if part_name != '' else path)}: got"
                    f" {space}, expected its elements to be arrays of one shape and dtype; wrap the"
                    " environment"
                )


def map_forms(make: Callable[[JaggedForm, TreePath], Any], forms: Any, path: TreePath) -> Any:
    """Return what a function makes of each form, in a tree of the same names."""
    if isinstance(forms, JaggedForm):
        return make(forms, path)
    return ArrayDict({name: map_forms(make, form, (*path, name)) for name, form in forms.items()})
