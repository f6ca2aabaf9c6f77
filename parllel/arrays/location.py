"""The location algebra: the part of a base buffer that a view shows, and how an index changes it.

A location has one entry for each axis of the base buffer:

- `int`: an earlier index chose this position; the view does not have the axis any more.
- `range`: the view shows these positions.
- integer array: the view shows these positions; all arrays of a location broadcast together, as
  in NumPy's advanced indexing. An array of no dimension is an integer that was given with them.

Indices count from the view's beginning in the view's own direction, so a negative index means a
position before the beginning. Positions count from the base buffer's beginning and are never
negative.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import takewhile
from types import EllipsisType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Axis: TypeAlias = int | range | NDArray[np.intp]
Location: TypeAlias = tuple[Axis, ...]
_Entry: TypeAlias = int | slice | NDArray[Any]
Index: TypeAlias = slice | EllipsisType | ArrayLike | tuple[slice | EllipsisType | ArrayLike, ...]
"""Index of an Array: integers, slices, `...`, integer arrays and boolean masks."""

_EVERYTHING = slice(None)


class _Apart(np.ndarray[Any, Any]):
    """An array of a location that was given after a `...` which stands for no axis.

    NumPy treats such an array and the arrays before it as if a range stood between them.
    """


def locate(location: Location, extents: Sequence[int], index: object) -> Location:
    """Return the location that an index leads to.

    >>> locate((range(1, 4), range(2)), (5, 2), (-1, slice(None)))
    (0, range(0, 2))

    Args:
        location: location of the view that is indexed.
        extents: length of each axis of the base buffer.
        index: index of the view, as `Index` says.

    Raises:
        IndexError: a position is outside the base buffer, there are too many indices, a mask has
            another shape, arrays don't broadcast, or an index has another type; or the view was
            made with integer arrays, and the index is not `...`.
    """
    basic = _locate_basic(location, extents, index)
    if basic is not None:
        return basic
    entries, split = _entries(index, location)
    if is_gathered(location):
        if all(isinstance(entry, slice) and entry == _EVERYTHING for entry in entries):
            return location
        raise IndexError(
            "a view made with integer arrays or a mask takes no further index but `...`; give all"
            " indices at once, or index its to_ndarray()"
        )
    located = list(location)
    has_arrays = any(isinstance(entry, np.ndarray) for entry in entries)
    live = (number for number, axis in enumerate(location) if isinstance(axis, range))
    for place, (number, entry) in enumerate(zip(live, entries, strict=False)):
        axis = located[number]
        assert isinstance(axis, range)
        if isinstance(entry, slice):
            located[number] = locate_slice(axis, extents[number], entry)
        elif isinstance(entry, int):
            position = _locate_integer(axis, extents[number], entry)
            # An integer beside arrays joins them, as NumPy has it.
            located[number] = np.asarray(position, np.intp) if has_arrays else position
        else:
            located[number] = _locate_array(axis, extents[number], entry)
        array = located[number]
        if place == split and isinstance(array, np.ndarray):
            located[number] = array.view(_Apart)
    if has_arrays:
        _check_together([axis for axis in located if isinstance(axis, np.ndarray)])
    return tuple(located)


def _locate_basic(location: Location, extents: Sequence[int], index: object) -> Location | None:
    """Return what `locate` does for integers and slices alone, sooner; None for all others."""
    items = index if index.__class__ is tuple else (index,)
    n_used, located = 0, list(location)
    for number, axis in enumerate(location):
        if axis.__class__ is not range:
            if axis.__class__ is not int:
                return None
        elif n_used < len(items):
            entry = items[n_used]
            if entry.__class__ is slice:
                located[number] = locate_slice(axis, extents[number], entry)
            elif entry.__class__ is int:
                located[number] = _locate_integer(axis, extents[number], entry)
            else:
                return None
            n_used += 1
    return tuple(located) if n_used == len(items) else None


def shift(location: Location, extents: Sequence[int], by: int) -> Location:
    """Return the location some rows later in time, which is the base buffer's first axis.

    Args:
        location: location of a view.
        extents: length of each axis of the base buffer.
        by: number of rows; negative for a location earlier in time.

    Raises:
        IndexError: a row would lie outside the base buffer.
    """
    side = "next" if by > 0 else "previous"
    if not location:
        raise IndexError(f"{side}: a copied element has no rows around it")
    time = location[0]
    if isinstance(time, range):
        moved: Axis = range(time.start + by, time.stop + by, time.step)
        rows = [time[0] + by, time[-1] + by] if time else []
    else:  # NumPy's sum of an array of no dimension is a scalar
        moved = time + by if isinstance(time, int) else np.asarray(time + by)
        rows = np.ravel(moved).tolist()
    if any(not 0 <= row < extents[0] for row in rows):
        raise IndexError(
            f"{side}: it reaches outside the base buffer of {extents[0]} rows; allocate the Array"
            " with padding=1 or more, or take a view that ends earlier"
        )
    return (moved, *location[1:])


def is_gathered(location: Location) -> bool:
    """Whether integer arrays are part of a location, so that reading it gathers a copy."""
    for axis in location:  # noqa: SIM110  # a generator takes twice as long
        if isinstance(axis, np.ndarray):
            return True
    return False


def keys(location: Location) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return two NumPy indices that lead from the base buffer to a location, one after the other.

    The first applies the integers of earlier indices and gives a NumPy view. The second applies the
    rest, `()` where there is none. In one index, NumPy would let these integers join the arrays.
    """
    if not is_gathered(location):
        return (*map(_key, location), Ellipsis), ()
    first = tuple(axis if isinstance(axis, int) else _EVERYTHING for axis in location)
    second: list[Any] = []
    for axis in location:
        if not isinstance(axis, int):
            second += [Ellipsis, axis] if isinstance(axis, _Apart) else [_key(axis)]
    return (*first, Ellipsis), tuple(second)


def rows_of(location: Location, extents: Sequence[int]) -> tuple[int, NDArray[np.intp]] | None:
    """Return the whole rows that integer arrays pick.

    Args:
        location: location of a view.
        extents: length of each axis of the base buffer.

    Returns:
        The number of leading axes that the arrays are on, and intp [n], the numbers of the rows
        over these axes together; None where the location does not pick whole rows.
    """
    n_axes = sum(1 for _ in takewhile(lambda axis: isinstance(axis, np.ndarray), location))
    rest = location[n_axes:]
    if not n_axes or is_gathered(rest) or rest != tuple(map(range, extents[n_axes:])):
        return None
    arrays = np.broadcast_arrays(*(np.asarray(axis) for axis in location[:n_axes]))
    return n_axes, np.ravel_multi_index(arrays, tuple(extents[:n_axes])).ravel()


def row_numbers(location: Location, extents: Sequence[int], n_axes: int) -> NDArray[np.int64]:
    """Return the numbers of the rows that a view shows, over the first axes together.

    Args:
        location: location of the view; it has arrays of one dimension or more on the first axes
            only.
        extents: length of each axis of the base buffer.
        n_axes: number of axes that rows are numbered over.

    Returns:
        int64, with the dimensions of the view that stem from these axes, in the view's order.
    """
    dims = [number for _, number in _dimensions(location) if number < n_axes]
    numbers = np.zeros((), np.int64)
    picked = np.zeros((), np.int64)
    first_picked = len(dims)
    for n, axis in enumerate(location[:n_axes]):
        stride = math.prod(extents[n + 1 : n_axes])
        if isinstance(axis, range):
            positions = np.arange(axis.start, axis.stop, axis.step, dtype=np.int64) * stride
            numbers = numbers + positions.reshape((-1,) + (1,) * (len(dims) - dims.index(n) - 1))
        elif isinstance(axis, int):
            numbers = numbers + axis * stride
        else:
            picked = picked + np.asarray(axis) * stride
            first_picked = min([first_picked, *(at for at, dim in enumerate(dims) if dim == n)])
    n_behind = len(dims) - first_picked - picked.ndim
    return np.asarray(numbers + picked.reshape(picked.shape + (1,) * n_behind), np.int64)


def shape_of(location: Location) -> tuple[int, ...]:
    """Return the shape of the view that lies at a location."""
    shape = []
    for axis in location:
        if axis.__class__ is range:
            shape.append(len(axis))
        elif axis.__class__ is not int:
            return tuple(length for length, _ in _dimensions(location))
    return tuple(shape)


def count_dims(location: Location, n_axes: int) -> int:
    """Return the number of leading dimensions of a view that stem from the first axes."""
    numbers = (number for _, number in _dimensions(location))
    return sum(1 for _ in takewhile(lambda number: number < n_axes, numbers))


def _are_neighbours(location: Sequence[Axis]) -> bool:
    """Whether neither a range nor a `...` stands between the arrays of a location."""
    live = [axis for axis in location if not isinstance(axis, int)]
    places = [place for place, axis in enumerate(live) if isinstance(axis, np.ndarray)]
    is_set_apart = any(isinstance(live[place], _Apart) for place in places[1:])
    return places[-1] - places[0] == len(places) - 1 and not is_set_apart


def _dimensions(location: Location) -> list[tuple[int, int]]:
    """Return the length of each dimension of a view, and the base axis that it stems from."""
    live = [(n, axis) for n, axis in enumerate(location) if not isinstance(axis, int)]
    ranges = [(len(axis), n) for n, axis in live if isinstance(axis, range)]
    arrays = [(n, axis) for n, axis in live if isinstance(axis, np.ndarray)]
    if not arrays:
        return ranges
    lengths = np.broadcast_shapes(*(axis.shape for _, axis in arrays))
    first = next(place for place, (_, axis) in enumerate(live) if isinstance(axis, np.ndarray))
    at = first if _are_neighbours(location) else 0  # NumPy's rule: arrays apart go to the front
    stem = next(n for n, axis in arrays if axis.ndim)  # an integer beside them has no dimension
    return ranges[:at] + [(length, stem) for length in lengths] + ranges[at:]


def _key(axis: Axis) -> Any:
    if not isinstance(axis, range):
        return axis
    if not axis:
        return slice(0, 0)  # the ends of an empty range may be negative
    return slice(axis.start, axis.stop if axis.stop >= 0 else None, axis.step)


def _locate_integer(axis: range, extent: int, index: int) -> int:
    position = axis.start + index * axis.step
    if not 0 <= position < extent:
        raise IndexError(_outside(axis, extent, index))
    return position


def _locate_array(axis: range, extent: int, indices: NDArray[Any]) -> NDArray[np.intp]:
    # Checked as indices, not as positions: those of huge indices would overflow.
    at_least, at_most = _reach(axis, extent)
    if indices.size and (int(indices.min()) < at_least or int(indices.max()) > at_most):
        is_outside = (indices < at_least) | (indices > at_most)
        raise IndexError(_outside(axis, extent, int(indices[is_outside].flat[0])))
    return np.asarray(axis.start + indices.astype(np.intp) * axis.step, np.intp)


def _check_together(arrays: list[NDArray[np.intp]]) -> None:
    try:
        np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError as error:
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise IndexError(f"integer arrays: got shapes {shapes}, which don't broadcast") from error


def locate_slice(axis: range, extent: int, entry: slice) -> range:
    """Return the positions of a slice: those of the axis' own grid that the base buffer has.

    Ends are cut off as indices. As positions they would be cut off at the base buffer's ends, which
    another grid may have: rows 1, 3, ... begin at index 0, and index -1 is no row 0.
    """
    if entry.step is None and axis.step == 1:  # as nearly all are, without further calls
        begin, first, end = axis.start, entry.start, entry.stop
        if first.__class__ is not int:
            first = 0 if first is None else operator.index(first)
        if end.__class__ is not int:
            end = len(axis) if end is None else operator.index(end)
        first += begin
        end += begin
        first = 0 if first < 0 else first if first < extent else extent
        return range(first, 0 if end < 0 else end if end < extent else extent)
    step = 1 if entry.step is None else operator.index(entry.step)
    if step == 0:
        raise ValueError("slice step: got 0, expected any other integer")
    first, end = (0, len(axis)) if step > 0 else (len(axis) - 1, -1)
    first = first if entry.start is None else operator.index(entry.start)
    end = end if entry.stop is None else operator.index(entry.stop)
    at_least, at_most = _reach(axis, extent)
    lowest, highest = (at_least, at_most + 1) if step > 0 else (at_least - 1, at_most)
    first, end = (min(max(index, lowest), highest) for index in (first, end))
    return range(axis.start + first * axis.step, axis.start + end * axis.step, step * axis.step)


def _reach(axis: range, extent: int) -> tuple[int, int]:
    """Return the lowest and the highest index of a position inside the base buffer."""
    n_before = axis.start // abs(axis.step)
    n_after = (extent - 1 - axis.start) // abs(axis.step)
    return (-n_before, n_after) if axis.step > 0 else (-n_after, n_before)


def _outside(axis: range, extent: int, index: int) -> str:
    at_least, at_most = _reach(axis, extent)
    return (
        f"index {index} is outside the base buffer: expected {at_least} to {at_most}, where 0 is"
        " the view's beginning and a negative index lies before it (`array.last` is the last one)"
    )


def _entries(index: object, location: Location) -> tuple[list[_Entry], int | None]:
    """Return one integer, slice or integer array for each indexed dimension of a view.

    The second result is the position among them of a `...` that stands for no dimension.
    """
    shape = shape_of(location)
    items = index if isinstance(index, tuple) else (index,)
    given = [item if item is Ellipsis else _entry(item) for item in items]
    n_given = sum(_width(entry) for entry in given)
    if n_given > len(shape):
        raise IndexError(
            f"too many indices: got {n_given}, expected at most {len(shape)} for shape {shape}"
        )
    n_ellipses = sum(entry is Ellipsis for entry in given)
    if n_ellipses > 1:
        raise IndexError(f"index: got `...` {n_ellipses} times, expected it once at most")
    entries: list[_Entry] = []
    split = None
    for entry in given:
        if entry is Ellipsis:
            split = len(entries) if n_given == len(shape) else None
            entries += [_EVERYTHING] * (len(shape) - n_given)
        elif isinstance(entry, np.ndarray) and entry.dtype == bool:
            entries += _mask_entries(entry, shape[len(entries) : len(entries) + entry.ndim])
        else:
            entries.append(entry)
    return entries, split


def _width(entry: object) -> int:
    """Return the number of dimensions that an entry indexes."""
    if entry is Ellipsis:
        return 0
    return entry.ndim if isinstance(entry, np.ndarray) and entry.dtype == bool else 1


def _entry(item: object) -> _Entry:
    """Return an item of an index as an integer, a slice, an integer array or a mask."""
    if isinstance(item, slice):
        return item
    if isinstance(item, int | np.integer) and not isinstance(item, bool):
        return int(item)
    if item is None or isinstance(item, str):
        raise IndexError(_wrong_kind(item))
    try:
        array = np.asarray(item)
    except TypeError as error:
        if not hasattr(item, "__cuda_array_interface__"):
            raise
        raise TypeError(
            f"index: got a {type(item).__name__} in device memory, which is not converted"
            " implicitly: to_ndarray() of an Array, .get() of CuPy and .cpu() of torch copy it"
        ) from error
    if array.size == 0 and array.dtype.kind == "f":  # an empty list has no dtype of its own
        array = array.astype(np.intp)
    if array.dtype.kind not in "iub" or (array.dtype == bool and array.ndim == 0):
        raise IndexError(_wrong_kind(item))
    return int(array) if array.ndim == 0 else array


def _mask_entries(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> list[_Entry]:
    if mask.shape != shape:
        raise IndexError(f"mask: got shape {mask.shape}, expected {shape}, what the view shows")
    return list(mask.nonzero())


def _wrong_kind(item: object) -> str:
    return (
        f"index: got {item!r} ({type(item).__name__}), expected integers, slices, `...`, integer"
        " arrays or boolean masks; for new axes and other NumPy tricks index to_ndarray()"
    )
