"""Indices of device arrays: basic ones, and those with arrays of integers, read when work runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parllel.testing.simulated_cuda.errors import NotImitatedError
from parllel.testing.simulated_cuda.host_values import Check, HostValues


class Source(Protocol):
    """Where an array of integers comes from."""

    checks: tuple[Check, ...]

    def read(self) -> NDArray[Any]:
        """Return the integers, at the time when the work runs."""


class Index:
    """The items between the brackets of an index, ready to be applied now or later.

    Integers in arrays that lie outside are wrapped, as CuPy does it: nothing is raised.

    Args:
        given: the index.
        shape: shape of the indexed array.
        as_source: makes a source of a device array; None for all else.
    """

    def __init__(
        self, given: object, shape: tuple[int, ...], as_source: Callable[[object], Source | None]
    ) -> None:
        self._entries: list[Any] = []
        self._sources: dict[int, tuple[Source, int, tuple[int, ...]]] = {}
        items = list(given) if isinstance(given, tuple) else [given]
        n_given = sum(_width(item) for item in items)
        axis = 0
        for item in items:
            if item is Ellipsis:
                axis += len(shape) - n_given
                self._entries.append(item)
            elif item is None or isinstance(item, slice | int | np.integer):
                axis += item is not None
                self._entries.append(item)
            else:
                for source, source_shape in _sources_of(item, as_source):
                    self._sources[len(self._entries)] = (source, axis, source_shape)
                    self._entries.append(np.zeros(source_shape, np.intp))
                    axis += 1
        if not any(entry is Ellipsis for entry in self._entries):
            self._entries.append(Ellipsis)  # with it NumPy returns an array, never a scalar
        self._shape = shape
        self.checks = tuple(
            check for source, *_ in self._sources.values() for check in source.checks
        )

    @property
    def is_gathered(self) -> bool:
        """Whether arrays of integers are part of it."""
        return bool(self._sources)

    def example(self) -> tuple[Any, ...]:
        """Return an index of the same form, for shapes and views; the arrays hold zeros."""
        return tuple(self._entries)

    def read(self) -> tuple[Any, ...]:
        """Return the index as NumPy takes it, at the time when the work runs."""
        entries = list(self._entries)
        for place, (source, axis, _) in self._sources.items():
            entries[place] = source.read() % max(self._shape[axis], 1)
        return tuple(entries)


def _width(item: Any) -> int:
    """Return how many axes an item consumes."""
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if isinstance(item, np.ndarray) and item.dtype == bool else 1


def _sources_of(
    item: Any, as_source: Callable[[object], Source | None]
) -> list[tuple[Source, tuple[int, ...]]]:
    source = as_source(item)
    if source is not None:
        if item.dtype.kind not in "iu":
            raise NotImitatedError("a mask in device memory is not imitated; give integers")
        return [(source, item.shape)]
    array = np.asarray(item)
    if array.size == 0 and isinstance(item, list):
        array = array.astype(np.int32)
    if array.dtype == bool:
        return [(HostValues(integers), integers.shape) for integers in array.nonzero()]
    if array.dtype.kind not in "iu":
        raise IndexError(
            "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or"
            f" boolean arrays are valid indices; got {item!r}"
        )
    return [(HostValues(array), array.shape)]
