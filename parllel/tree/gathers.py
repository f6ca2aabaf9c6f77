"""Rows that integer arrays pick from whole trees: all leaves in one copy, or in one launch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array
from parllel.arrays.interop import may_share_memory, to_device, to_host
from parllel.cuda import AnyArray
from parllel.ops.row_copy import RowCopy, prepare_gather
from parllel.ops.stack_gather import RowSource
from parllel.tree.path import TreePath, path_text

AnyArrays: TypeAlias = dict[TreePath, Any]  # numpy.ndarray, cupy.ndarray or a RowSource

# On the host, leaf by leaf is as quick for fewer rows (measured with 6 leaves of 16 bytes): finding
# the rows and making a table of leaves takes longer than is won.
_FEWEST_ON_HOST = 4096


def has_arrays(index: object) -> bool:
    """Whether integer arrays, lists or masks, of any library, are part of an index."""
    if index.__class__ is int:
        return False
    parts = index if isinstance(index, tuple) else (index,)
    return any(hasattr(part, "__len__") for part in parts)


def gather(leaves: Iterator[tuple[TreePath, Any]]) -> AnyArrays | None:
    """Return the rows that views show in new memory, if the same integer arrays made all of them.

    All views are gathered at once: in device memory by one launch in the caller's current stream,
    in host memory by the kernel's twin.

    Args:
        leaves: the views with their paths.

    Returns:
        Arrays of CuPy or NumPy by path; None where the views do not pick the same whole rows of
        each leaf, are not in one kind of memory, or where leaf by leaf is quicker.
    """
    first = next(leaves, None)
    if first is None or not isinstance(first[1], Array) or not first[1].is_gathered:
        return None  # as for most trees, after one look
    views = dict([first, *leaves])
    found = _find_rows(views)
    if found is None:
        return None
    rows, numbers = found
    on_device = not next(iter(views.values())).is_on_host
    with cuda.use_stream() if on_device else nullcontext():
        empty = cuda.library().empty if on_device else np.empty
        gathered = {path: empty(view.shape, view.dtype) for path, view in views.items()}
    written = [_as_rows(gathered[path], rows[path]) for path in views]
    prepare_gather(written, list(rows.values()), names=_names_of(rows))(numbers)
    return gathered


def scatter(views: Mapping[TreePath, Any], values: Mapping[TreePath, Any]) -> bool:
    """Write values to views, if the same integer arrays made all of them.

    All views are written at once, as `gather` reads them; values of the host are copied to device
    memory before, with one copy for each. Where a row is picked twice, it gets the later one of
    its values in host memory, and bytes of either one in device memory.

    Args:
        views: Arrays by path.
        values: arrays of any library, or Arrays, by the same paths.

    Returns:
        Whether the values were written. They are not where `gather` returns None, where a value
        has another shape or dtype than its view, where memory that is written overlaps other
        memory of the copy, and where views show stacks of frames.
    """
    found = _find_rows(views)
    if found is None or _has_stacks(found[0]):
        return False
    rows, numbers = found
    on_device = not next(iter(views.values())).is_on_host
    read = []
    for path, view in views.items():
        value = (to_device if on_device else to_host)(values[path])
        if getattr(value, "shape", None) != view.shape or value.dtype != view.dtype:
            return False
        if may_share_memory(value, rows[path]):
            return False
        if not value.flags.c_contiguous:
            with cuda.use_stream() if on_device else nullcontext():
                value = value.copy()
        read.append(_as_rows(value, rows[path]))
    try:
        copy = RowCopy(list(rows.values()), read, names=_names_of(rows))
    except ValueError:  # leaves overlap each other
        return False
    copy.run(numbers, range(len(numbers)))
    return True


def _find_rows(views: Mapping[TreePath, Any]) -> tuple[AnyArrays, NDArray[np.int64]] | None:
    """Return each view's rows from the lowest picked one on, and the numbers picked among them."""
    rows: AnyArrays = {}
    common: NDArray[np.int64] | None = None
    for path, view in views.items():
        picked = view.picked_rows() if isinstance(view, Array) and view.size else None
        if picked is None or view.is_on_host != next(iter(views.values())).is_on_host:
            return None
        if view.is_on_host and picked.numbers.size < _FEWEST_ON_HOST:
            return None
        lowest = picked.numbers.min()
        numbers = picked.numbers - lowest
        if common is not None and not np.array_equal(numbers, common):
            return None
        rows[path], common = picked.rows[lowest:], numbers
        if _has_stacks(rows) and view.is_on_host:
            return None
    return None if common is None else (rows, common)


def _names_of(rows: AnyArrays) -> list[str]:
    return [path_text(path) for path in rows]


def _has_stacks(rows: AnyArrays) -> bool:
    return any(isinstance(each, RowSource) for each in rows.values())


def _as_rows(values: AnyArray, like: AnyArray | RowSource) -> AnyArray:
    n_rows = values.size // max(1, math.prod(like.shape[1:]))
    return values.reshape(n_rows, *like.shape[1:])
