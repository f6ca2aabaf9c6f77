"""Observations that are in no row of the sample tree, as rows of their own."""

from __future__ import annotations

from collections.abc import Sequence

from parllel.arrays import Array
from parllel.arrays.interop import side_of
from parllel.cages import as_tree, write_column
from parllel.tree import ArrayDict, Rows, dict_map, leaves_of
from parllel.tree.leaves import as_ndarray


def as_rows(observations: Sequence[object], like: Rows) -> Rows:
    """Return observations as new rows with the dtype and shape that the sample tree has.

    Args:
        observations: k observations, as environments returned them.
        like: rows [B, ...] of the tree's `observation`.

    Returns:
        Rows [k, ...]: Arrays and trees of Arrays, in device memory for a tree that a GPU works on.
    """
    rows: Array | ArrayDict = dict_map(_new_rows, like, len(observations))
    written = as_tree(rows)
    write_column(dict_map(as_ndarray, written), observations)
    (_, first), *_ = leaves_of(like)
    if side_of(first) == "host":
        return rows
    on_device: Rows = dict_map(_to_device, rows)
    return on_device


def _new_rows(leaf: Array, n_rows: int) -> Array:
    return Array.from_spec(leaf.spec.changed(batch_shape=(n_rows,)))


def _to_device(rows: Array) -> Array:
    return rows.to("device")
