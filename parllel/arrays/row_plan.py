"""RowPlan, PlannedRows, write_whole, find_write: rows of Arrays in host memory, found at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from itertools import repeat
from operator import attrgetter, getitem, is_, setitem
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.arrays.array import Array, ArrayView
from parllel.arrays.buffer import Buffer

_NUMBERS = "biuf"  # kinds of dtypes between which NumPy converts any number: bool, integers, floats

_SET: Callable[[Any, Any, Any], None] = setitem
_LEAD = attrgetter("_lead")  # changes where an Array's window moves, and where it closes
_consume = deque[None](maxlen=0).extend  # runs an iterator, faster than a loop
_FORM = attrgetter("__class__", "shape", "dtype")
_GET: Callable[[Any, Any], Any] = getitem
_IS_CLOSED = attrgetter("is_closed")


class PlannedRows(NamedTuple):
    """The rows of several Arrays, as they were when they were found: their windows may move.

    Args:
        names: the name of each Array in its tree.
        buffers: the memory of each Array.
        leads: what an integer index needs of each Array.
        rows: the rows of each Array, from the window's first one on.
        has_scalars: whether a row is a number, which NumPy gives as an array where it is asked to.
    """

    names: list[str]
    buffers: list[Buffer]
    leads: list[Any]
    rows: list[NDArray[Any]]
    has_scalars: bool

    def views(self, index: int) -> dict[str, Any]:
        """Return the views that `array[index]` is of each Array."""
        return {
            name: ArrayView(buffer, (*lead[5], lead[1] + index, *lead[6]), rows[index, ...])
            for name, buffer, lead, rows in zip(*self[:4], strict=True)
        }

    def arrays(self, index: int) -> dict[str, NDArray[Any]] | None:
        """Return `array[index].to_ndarray()` of each Array; None where one was closed."""
        names, buffers, _, rows, has_scalars = self
        if any(map(_IS_CLOSED, buffers)):
            return None
        key = repeat((index, ...) if has_scalars else index)
        return dict(zip(names, map(_GET, rows, key)))  # noqa: B905  # it takes time


class RowPlan:
    """The same row of several Arrays in host memory, written by arrays that have its very form.

    Asking the values of all Arrays at once costs what one assignment does (bench/bench_index.py).

    >>> tree = {"a": Array((3,), "float32"), "b": Array((3, 2), "int32")}
    >>> plan = RowPlan(tree)
    >>> row = {"a": np.ones((), np.float32), "b": np.ones(2, np.int32)}
    >>> plan.write(1, row), plan.write(3, row)
    (True, False)

    Args:
        arrays: leaves by name. Where one is no plain Array of host memory, the plan writes nothing.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = arrays.values()
        self._is_possible = bool(arrays) and all(
            type(each) is Array and each.is_on_host for each in self._arrays
        )
        # Without a plan, a name that no values have.
        self._names: list[Any] = list(arrays) if self._is_possible else [None]
        self._leads: list[Any] = [self] * len(self._arrays)  # which no Array has
        self._forms: list[Any] = []
        self._found = PlannedRows([], [], [], [], True)
        self._n_rows = 0  # that all Arrays have

    def write(
        self,
        index: int,
        values: Mapping[str, Any],
        out_writes: list[tuple[Any, Any, Any]] | None = None,
    ) -> bool:
        """Write one row of all Arrays, and return True; or return False where that might fail.

        Args:
            index: index of the row.
            values: what is to be written, by name.
            out_writes: a list that gets the assignments (array, position, value), which are not
                made then.
        """
        try:
            if (
                [*values] != self._names
                or not (all(map(is_, map(_LEAD, self._arrays), self._leads)) or self._look())
                or [*map(_FORM, values.values())] != self._forms
            ):
                return False
        except AttributeError:  # a number, a list
            return False
        if not 0 <= index < self._n_rows:
            return False
        if out_writes is None:
            _consume(map(_SET, self._found.rows, repeat(index), values.values()))
        else:
            out_writes.extend(zip(self._found.rows, repeat(index), values.values(), strict=False))
        return True

    def find(self, index: int) -> PlannedRows | None:
        """Return the rows of all Arrays; None where this one has to be looked for in each.

        Args:
            index: index of the row.
        """
        if not self._is_possible:
            return None
        is_known = all(map(is_, map(_LEAD, self._arrays), self._leads)) or self._look()
        return self._found if is_known and 0 <= index < self._n_rows else None

    def _look(self) -> bool:
        """Find the rows of all Arrays; tell whether a plan can write them."""
        if any(each._buffer.is_closed for each in self._arrays):
            return False
        self._leads = [each._lead or each._find_lead() for each in self._arrays]
        rows: list[NDArray[Any]] = []
        for every, start, step, n_rows, *_ in self._leads:
            if not n_rows or step != 1 or not every.flags.writeable:
                self._n_rows = 0  # the next look at these leads is this one
                return True
            rows.append(every[start:])
        buffers, has_scalars = [each._buffer for each in self._arrays], min(map(np.ndim, rows)) == 1
        self._found = PlannedRows(self._names, buffers, self._leads, rows, has_scalars)
        self._n_rows = min(map(len, rows))
        self._forms = [(np.ndarray, each.shape[1:], each.dtype) for each in rows]
        return True


def write_whole(
    arrays: Mapping[str, Any],
    values: Mapping[str, Any],
    out_writes: list[tuple[Any, Any, Any]] | None = None,
) -> bool:
    """Write Arrays of host memory whole, and return True; or return False where that might fail.

    All is asked here, in one function: between the steps of environments, each further one costs
    most of a microsecond (bench/bench_sampling.py).

    >>> rows = {"a": Array((4, 3), "float32")[0], "b": Array((4, 3, 2), "int32")[0]}
    >>> write_whole(rows, {"a": np.ones(3), "b": np.ones((3, 2))})
    True
    >>> write_whole(rows, {"a": np.ones(3), "b": np.ones(2)})
    False

    Args:
        arrays: leaves of any kind, by name.
        values: what is to be written, by name.
        out_writes: as for `RowPlan.write`.
    """
    if values.keys() != arrays.keys():
        return False
    writes: list[tuple[Any, Any, Any]] = []
    data: Any  # NumPy's, or None
    try:
        for name, array in arrays.items():
            if array.__class__ is not ArrayView and array.__class__ is not Array:
                return False  # another kind may write more than these rows
            value, data, buffer = values[name], array._data, array._buffer
            if value.__class__ is not np.ndarray and value.__class__ not in buffer.plain:
                value = buffer.accept(value)
            if (
                value.shape != data.shape
                or value.dtype.kind not in _NUMBERS
                or buffer.dtype.kind not in _NUMBERS
                or not buffer.is_writable
                or buffer.is_closed
            ):
                return False
            writes.append((data, ..., value))
    except Exception:  # a number; rows that are no array of NumPy's; or a value can't be converted
        return False
    if out_writes is None:
        for data, _, value in writes:
            data[...] = value
    else:
        out_writes += writes
    return True


def find_write(array: Any, index: Any, value: Any) -> tuple[NDArray[Any], Any, NDArray[Any]] | None:
    """Return `array[index] = value` as an assignment between arrays of NumPy that can't fail.

    There is one where an array is written to a plain Array in host memory whose rows have its very
    shape. A value of another library or of a device comes to NumPy here. For all other writes, the
    result is None: they may be right too.

    >>> rows, row, value = find_write(Array((3, 2), "float32"), 1, np.ones(2))
    >>> rows.shape, row, value
    ((3, 2), 1, array([1., 1.]))
    >>> find_write(Array((3, 2), "float32"), 1, np.ones(3)) is None
    True

    Args:
        array: a leaf of any kind.
        index: index of the rows: an integer or `...`.
        value: what is to be written.

    Returns:
        The array, the index and the value of the assignment.
    """
    if array.__class__ is not ArrayView and array.__class__ is not Array:
        return None  # another kind may write more than these rows
    if index is Ellipsis:
        writes: list[tuple[Any, Any, Any]] = []
        return writes[0] if write_whole({"": array}, {"": value}, writes) else None
    buffer = array._buffer
    if index.__class__ is not int or not buffer.is_writable or buffer.is_closed:
        return None
    if value.__class__ is not np.ndarray:
        if value.__class__ in buffer.plain:  # a list, a number
            return None
        value = buffer.accept(value)
    rows, start, step, n_rows, *_ = array._lead or array._find_lead()
    row = start + index * step
    are_numbers = value.dtype.kind in _NUMBERS and buffer.dtype.kind in _NUMBERS
    if 0 <= row < n_rows and value.shape == rows.shape[1:] and are_numbers:
        return rows, row, value
    return None
