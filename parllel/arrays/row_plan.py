"""RowPlan: the rows of several Arrays, to which arrays of NumPy are quickly told to fit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from itertools import repeat
from operator import attrgetter, is_, setitem
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays.array import Array

_SET: Callable[[Any, Any, Any], None] = setitem
_LEAD = attrgetter("_lead")  # changes where an Array's window moves, and where it closes
_consume = deque[None](maxlen=0).extend  # runs an iterator, faster than a loop
_FORM = attrgetter("__class__", "shape", "dtype")


class RowPlan:
    """The same row of several Arrays in host memory, written by arrays that have its very form.

    Asking the values of all Arrays at once costs what one assignment does (bench/bench_index.py).

    >>> tree = {"a": Array((3,), "float32"), "b": Array((3, 2), "int32")}
    >>> plan = RowPlan(tree)
    >>> row = {"a": np.ones((), np.float32), "b": np.ones(2, np.int32)}
    >>> plan.write(1, row), plan.write(3, row)
    (True, False)

    Args:
        arrays: leaves by name. Where one is no plain Array of host memory, or where their windows
            differ, the plan writes nothing.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = arrays.values()
        is_possible = all(type(each) is Array for each in self._arrays)
        self._names = list(arrays) if is_possible else [None]  # which no values have
        self._leads: list[Any] = [self] * len(self._arrays)  # which no Array has
        self._rows: list[NDArray[Any]] = []
        self._forms: list[Any] = []
        self._steps = (0, 0, 0)  # start, step and number of the rows

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
        start, step, n_rows = self._steps
        row = start + index * step
        if not 0 <= row < n_rows:
            return False
        if out_writes is None:
            _consume(map(_SET, self._rows, repeat(row), values.values()))
        else:
            out_writes.extend(zip(self._rows, repeat(row), values.values(), strict=False))
        return True

    def _look(self) -> bool:
        """Find the rows of all Arrays; tell whether a plan can write them."""
        if any(each._buffer.is_closed for each in self._arrays):
            return False
        leads = [each._lead or each._find_lead() for each in self._arrays]
        rows = [lead[0] for lead in leads]
        steps = {lead[1:4] for lead in leads}
        if len(steps) > 1 or not all(
            isinstance(each, np.ndarray) and each.flags.writeable for each in rows
        ):
            return False
        self._leads, self._rows, [self._steps] = leads, rows, steps
        self._forms = [(np.ndarray, each.shape[1:], each.dtype) for each in rows]
        return True
