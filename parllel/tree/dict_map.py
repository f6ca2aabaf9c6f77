"""dict_map, leaves_of: what is done to a leaf, or to all leaves of a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from parllel.arrays import Array, Leaf
from parllel.tree.array_dict import ArrayDict
from parllel.tree.path import TreePath

Rows: TypeAlias = "Leaf | ArrayDict"
"""A leaf, or a tree of leaves: what one branch of a sample tree may be."""


def dict_map(function: Callable[..., Any], tree: object, *args: object, **kwargs: object) -> Any:
    """Call `function(leaf, *args, **kwargs)` for a leaf, or for all leaves of a tree.

    Args:
        function: the function to call.
        tree: an ArrayDict or another mapping, for which an ArrayDict of results is returned; any
            other value is a leaf, and its result is returned.
        args, kwargs: further arguments of each call.

    >>> dict_map(lambda leaf, n: leaf + n, {"a": 1, "b": {"c": 2}}, 10)
    ArrayDict({
        'a': 11,
        'b': ArrayDict({
            'c': 12,
        }),
    })
    """
    if isinstance(tree, Array):  # asked first: it is the common case, and quickly told
        return function(tree, *args, **kwargs)
    if isinstance(tree, Mapping):
        tree = tree if isinstance(tree, ArrayDict) else ArrayDict(tree)
        return tree.apply(function, *args, **kwargs)
    return function(tree, *args, **kwargs)


def leaves_of(value: object) -> list[tuple[TreePath, Any]]:
    """Return the leaves of a tree with their paths, or a single leaf with the path `()`.

    Args:
        value: an ArrayDict; any other value is a leaf.
    """
    is_leaf = isinstance(value, Array) or not isinstance(value, ArrayDict)  # quickly told
    return [((), value)] if is_leaf else list(value.walk())  # type: ignore[attr-defined]
