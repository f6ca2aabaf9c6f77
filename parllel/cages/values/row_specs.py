"""The specs of the rows that observations of a space are stored in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gymnasium import spaces

from parllel.arrays import ArraySpec, JaggedSpec
from parllel.cages.values.jagged_spaces import (
    EDGES,
    NODES,
    Capacities,
    JaggedForm,
    is_jagged,
    jagged_forms,
    map_forms,
)
from parllel.cages.values.spaces import check_space, stored_dtype
from parllel.tree import ArrayDict, TreePath, path_text


def row_specs(
    space: spaces.Space[Any],
    batch_shape: tuple[int, ...],
    *,
    capacity: Capacities = None,
    on_overflow: Literal["raise", "drop"] = "raise",
    path: TreePath = ("observation",),
) -> Any:  # Any: an ArraySpec, or an ArrayDict of such
    """Return the specs of rows for values of a space.

    >>> row_specs(spaces.MultiBinary(3), (2,)).shape
    (2, 3)
    >>> row_specs(spaces.Sequence(spaces.Discrete(4)), (2,), capacity=10).nbytes > 2 * 10 * 4
    True

    Args:
        space: the space of a single environment's observations.
        batch_shape: leading dimensions of the rows.
        capacity: the largest length of elements whose space has none, by the names of branches
            where there are several; that of a `PointCloud` may be given too.
        on_overflow: what happens to longer elements, "raise" or "drop"; of a graph, edges are
            dropped, and too many nodes raise in any case.
        path: names of the branch, for errors.

    Raises:
        TypeError: the capacity is of another form than the branch.
        ValueError: a capacity is missing, or of a branch that there is not.
    """
    if is_jagged(space):

        def make(form: JaggedForm, own: TreePath) -> ArraySpec:
            if form.capacity is None:
                raise ValueError(_missing(space, path))
            # Links would lead to nodes that are not there.
            are_nodes = isinstance(space, spaces.Graph) and own[-1] == NODES
            plain = _plain_spec(form.space, batch_shape)
            return JaggedSpec.of(
                batch_shape,
                plain.dtype,
                plain.feature_shape,
                capacity=form.capacity,
                on_overflow="raise" if are_nodes else on_overflow,
            )

        return map_forms(make, jagged_forms(space, capacity, path), path)
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        if capacity is not None:
            raise ValueError(
                f"capacity: got {capacity!r} for {path_text(path)}, whose values all have the same"
                " shape"
            )
        check_space(path, space)
        return _plain_spec(space, batch_shape)
    members = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
    parts = {str(name): part for name, part in members}
    given: Mapping[str, Capacities] = {} if capacity is None else _by_name(capacity, parts, path)
    return ArrayDict(
        {
            name: row_specs(
                part,
                batch_shape,
                capacity=given.get(name),
                on_overflow=on_overflow,
                path=(*path, name),
            )
            for name, part in parts.items()
        }
    )


def _plain_spec(space: spaces.Space[Any], batch_shape: tuple[int, ...]) -> ArraySpec:
    assert space.shape is not None
    return ArraySpec.of(batch_shape, stored_dtype(space), space.shape)


def _by_name(
    capacity: Capacities, parts: Mapping[str, object], path: TreePath
) -> Mapping[str, Capacities]:
    if not isinstance(capacity, Mapping):
        raise TypeError(
            f"capacity: got {capacity!r} for {path_text(path)}, a tree of {list(parts)}; name the"
            f" leaves, as in {{{next(iter(parts))!r}: {capacity!r}}}"
        )
    if unknown := sorted(set(capacity) - set(parts)):
        raise ValueError(
            f"capacity: got {unknown}, expected names of {path_text(path)}: {list(parts)}"
        )
    return capacity


def _missing(space: spaces.Space[Any], path: TreePath) -> str:
    """Return the message about a capacity that is needed, with the argument to give."""
    if isinstance(space, spaces.Graph):
        what, given = "numbers of nodes and edges", f"{{{NODES!r}: 20, {EDGES!r}: 60}}"
    else:
        what, given = "length", "100"
    for name in reversed(path[1:]):
        given = f"{{{name!r}: {given}}}"
    return (
        f"{path_text(path)}: {space} has no largest {what}, and memory is taken before the first"
        f" one; give the most that there may be, as in build_example(..., capacity={given})"
    )
