"""Rows that integer arrays pick from whole trees in device memory: all leaves in one launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array
from parllel.arrays.interop import to_device
from parllel.arrays.stacks import FrameSource
from parllel.tree.rows import RowCopy, prepare_gather

DeviceArrays: TypeAlias = dict[str, Any]  # path -> cupy.ndarray, or a FrameSource


def has_arrays(index: Any) -> bool:
    """Whether integer arrays, lists or masks are part of an index."""
    if index.__class__ is int:
        return False
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list | np.ndarray) for part in parts)


def gather_on_device(views: Mapping[str, Array]) -> DeviceArrays | None:
    """Return what views in device memory show that were made with the same integer arrays.

    One launch in the caller's current stream for all of them, into new memory.

    Args:
        views: by path.

    Returns:
        Arrays by path; None where the views do not pick the same whole rows of each leaf.
    """
    found = _find_rows(views)
    if found is None:
        return None
    rows, numbers = found
    with cuda.use_stream():
        gathered = {
            path: cuda.library().empty(view.shape, view.dtype) for path, view in views.items()
        }
    written = [_as_rows(gathered[path], rows[path]) for path in views]
    prepare_gather(written, list(rows.values()), names=list(rows))(numbers)
    return gathered


def scatter_on_device(views: Mapping[str, Array], values: Mapping[str, Any]) -> bool:
    """Write values to views in device memory that were made with the same integer arrays.

    One launch in the caller's current stream for all of them; values of the host are copied to
    the device before, one copy for each. Where a row is picked twice, it gets bytes of either one
    of its values.

    Args:
        views: by path.
        values: by the same paths.

    Returns:
        Whether it was done: not where the views do not pick the same whole rows of each leaf, or
        where a value has another shape or dtype than its view; nor into stacks of frames.
    """
    found = _find_rows(views)
    if found is None or any(isinstance(each, FrameSource) for each in found[0].values()):
        return False
    rows, numbers = found
    read = []
    for path, view in views.items():
        value = to_device(values[path])
        if getattr(value, "shape", None) != view.shape or value.dtype != view.dtype:
            return False
        with cuda.use_stream():
            contiguous = value if value.flags.c_contiguous else value.copy()
            read.append(_as_rows(contiguous, rows[path]))
    RowCopy(list(rows.values()), read, names=list(rows)).run(numbers, range(len(numbers)))
    return True


def _find_rows(views: Mapping[str, Array]) -> tuple[DeviceArrays, NDArray[np.int64]] | None:
    """Return each view's rows from the lowest picked one on, and the numbers picked among them."""
    rows: DeviceArrays = {}
    common = None
    for path, view in views.items():
        picked = view.picked_rows()
        if picked is None or not picked.numbers.size:
            return None
        lowest = picked.numbers.min()
        numbers = picked.numbers - lowest
        if common is not None and not np.array_equal(numbers, common):
            return None
        rows[path], common = picked.rows[lowest:], numbers
    return None if common is None else (rows, common)


def _as_rows(values: Any, like: Any) -> Any:  # Any: cupy.ndarray
    return values.reshape(-1, *like.shape[1:])
