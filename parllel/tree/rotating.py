"""Rotations of all Arrays of a tree: each on the host by itself, those on a device together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parllel import cuda
from parllel.arrays import Array
from parllel.ops.row_copy import copy_blocks
from parllel.tree.errors import raise_at
from parllel.tree.path import TreePath, path_text


def rotate_leaves(leaves: Sequence[tuple[TreePath, Array]]) -> None:
    """Rotate Arrays (`Array.rotate`).

    Where windows wrap in device memory, one launch in the caller's current stream copies the rows
    around the end of all rings.

    Args:
        leaves: the Arrays with their paths, which an error is told by.

    Raises:
        TypeError: an Array is a view.
    """
    on_device = [(path, leaf) for path, leaf in leaves if not leaf.is_on_host]
    if on_device:
        cuda.refuse_capture("a rotation")  # the host moves the window, a graph would not
    moves: list[tuple[TreePath, Any, Any]] = []
    path: TreePath = ()
    try:
        for path, leaf in leaves:  # noqa: B007  # for an error
            if leaf.is_on_host:
                leaf.rotate()
        for path, leaf in on_device:
            moves += [(path, *rows) for rows in leaf.advance_window()]
    except Exception as error:
        raise_at(path, error)
    if moves:
        paths, destination, source = zip(*moves, strict=True)
        copy_blocks(destination, source, names=[path_text(path) for path in paths])
