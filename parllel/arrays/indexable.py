"""Indexable: how indices lead to views, and how values are written at them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays.interop import apart_from, put_on_device
from parllel.arrays.location import Location, is_gathered, keys, locate
from parllel.arrays.readable import Readable

if TYPE_CHECKING:
    from parllel.arrays.array import Array

# The way of an integer index, resolved once for each Array: the rows that it may reach with the
# later axes applied, then start, step and number of them, the columns, and the location around.
_Lead = tuple[NDArray[Any], int, int, int, int, Location, Location]


class Indexable(Readable, ABC):
    """The elements of a buffer at a location, for reading and writing by index."""

    __slots__ = ("_lead",)

    _lead: _Lead | None  # None until the first integer index

    @abstractmethod
    def _view(self, location: Location, data: NDArray[Any] | None = None) -> Array:
        """Return a view of the same buffer; `data` are its elements where they are known."""

    def __getitem__(self, index: Any) -> Array:
        lead = self._lead
        if lead is None or self._buffer.is_closed:
            lead = self._find_lead()
        rows, start, step, n_rows, n_columns, head, tail = lead
        if index.__class__ is int:
            row = start + index * step
            if 0 <= row < n_rows:
                return self._view((*head, row, *tail), rows[row, ...])
        elif index.__class__ is tuple and len(index) == 2:
            t, b = index
            if t.__class__ is int and b.__class__ is int:
                row = start + t * step
                if 0 <= row < n_rows and 0 <= b < n_columns:
                    around = (*head, row, tail[0][b], *tail[1:])  # type: ignore[index]  # a range
                    return self._view(around, rows[row, b, ...])
        return self._view(locate(self._location, self._buffer.extents, index))

    def __setitem__(self, index: Any, value: Any) -> None:
        lead = self._lead
        if lead is None or self._buffer.is_closed:
            lead = self._find_lead()
        if value.__class__ not in self._buffer.plain:
            if not self._buffer.is_on_host:
                self._write_on_device(index, value)
                return
            value = self._buffer.accept(value)
        try:
            if index is Ellipsis:
                if self._data is not None:
                    self._data[...] = value
                else:
                    self._write(self._location, value)
                return
            if index.__class__ is int:
                row = lead[1] + index * lead[2]
                if 0 <= row < lead[3]:
                    lead[0][row] = value
                    return
            elif index.__class__ is tuple and len(index) == 2:
                t, b = index
                if t.__class__ is int and b.__class__ is int:
                    row = lead[1] + t * lead[2]
                    if 0 <= row < lead[3] and 0 <= b < lead[4]:
                        lead[0][row, b] = value
                        return
            self._write(locate(self._location, self._buffer.extents, index), value)
        except ValueError as error:
            raise self._explain(error, value) from error

    def _write_on_device(self, index: Any, value: Any) -> None:
        view = self[index]
        try:
            if not view.is_gathered:
                put_on_device(value, out_device=view._elements())
                return
            with self._buffer.in_order():
                values = apart_from(self._buffer.data, self._buffer.accept(value))
                self._write(view._location, values)
        except ValueError as error:
            raise self._explain(error, value) from error

    def _explain(self, error: ValueError, value: Any) -> ValueError:
        return ValueError(f"writing {_describe(value)} into {self._describe()}: {error}")

    def _find_lead(self) -> _Lead:
        """Resolve the way of an integer index. A view with no such way gets one of no rows."""
        location, extents = self._location, self._buffer.extents
        place = next((n for n, axis in enumerate(location) if not isinstance(axis, int)), None)
        if place is None or is_gathered(location):
            self._lead = (self._buffer.data, 0, 0, 0, 0, (), ())
            return self._lead
        axis, head, tail = location[place], location[:place], location[place + 1 :]
        assert isinstance(axis, range)
        rows = self._buffer.data[keys((*head, range(extents[place]), *tail))[0]]
        has_columns = bool(tail) and isinstance(tail[0], range)
        n_columns = rows.shape[1] if has_columns else 0
        self._lead = (rows, axis.start, axis.step, extents[place], n_columns, head, tail)
        return self._lead

    def _write(self, location: Location, value: Any) -> None:
        first, second = keys(location)
        if second:
            self._buffer.data[first][second] = value
        elif location is self._location:
            self._elements()[...] = value  # which are remembered for the next write
        else:
            self._buffer.data[first] = value


def _describe(value: Any) -> str:
    try:
        return f"a value of shape {np.shape(value)}"
    except ValueError:  # a ragged list
        return "a list of lists of different lengths"
