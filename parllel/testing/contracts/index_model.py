"""The model of indices: every index on every view, by naive arithmetic and plain NumPy.

The model of a view knows, for each axis of the base buffer, where the view begins and how it goes
on. Every element of the base buffer holds its own flat position, so that the values of a view
tell which elements it shows. NumPy itself decides how integers, slices and arrays combine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a view: where it begins in the base buffer, and how it goes on."""

    start: int
    step: int
    length: int

    def at(self, index: int) -> int:
        """Return the position in the base buffer that an index leads to."""
        return self.start + index * self.step


@dataclasses.dataclass(frozen=True)
class Model:
    """The elements that a view shows, as flat positions of the base buffer."""

    extents: tuple[int, ...]
    n_batch_axes: int
    fixed: dict[int, int]  # base axis -> the position that an earlier index chose
    live: dict[int, Axis]  # base axis -> the part that the view shows; empty once gathered
    shown: NDArray[Any]
    rows: list[int]  # of the base buffer, whether or not the other axes show anything of them
    n_batch_dims: int
    is_gathered: bool = False

    def __getitem__(self, index: object) -> Model:
        """Return the model of `view[index]`, or raise IndexError."""
        items, split = spread(index, len(self.live))
        translated = dict(zip(self.live, map(self.translate, self.live, items), strict=True))
        key = split_at(split, map(as_key, translated.values()))
        shown = self.picked()[key]
        n_dims = count_batch_dims(translated, split, shown.ndim, self.n_batch_axes)
        if any(isinstance(entry, np.ndarray) for entry in key):
            rows = rows_of(translated[0]) if 0 in translated else self.rows
            return Model(
                self.extents, self.n_batch_axes, {}, {}, shown, rows, n_dims, is_gathered=True
            )
        fixed = self.fixed | {n: e for n, e in translated.items() if isinstance(e, int)}
        live = {n: e for n, e in translated.items() if isinstance(e, Axis)}
        return self.place(fixed, live)

    def translate(self, number: int, item: object) -> int | Axis | NDArray[Any]:
        """Return where an item of an index leads to on one axis of the base buffer."""
        axis, extent = self.live[number], self.extents[number]
        if isinstance(item, slice):
            return walk(axis, extent, item)
        indices = np.array(item, object)
        positions = [axis.at(int(index)) for index in indices.ravel()]
        if any(not 0 <= position < extent for position in positions):
            raise IndexError(f"{item} is outside")
        if indices.ndim == 0:
            return positions[0]
        return np.array(positions, int).reshape(indices.shape)

    def picked(self) -> NDArray[Any]:
        """Return the flat positions that earlier integers left over."""
        base = np.arange(math.prod(self.extents)).reshape(self.extents)
        return base[tuple(self.fixed.get(n, slice(None)) for n in range(base.ndim))]

    def place(self, fixed: dict[int, int], live: dict[int, Axis]) -> Model:
        """Return the model of a view without arrays."""
        entries: dict[int, Any] = fixed | live
        model = dataclasses.replace(
            self,
            fixed=fixed,
            live=live,
            rows=rows_of(entries[0]),
            n_batch_dims=sum(n < self.n_batch_axes for n in live),
        )
        shown = model.picked()[tuple(map(as_key, live.values()))]
        return dataclasses.replace(model, shown=shown)

    def later(self, by: int) -> Model:
        """Return the model of the same rows `by` rows later, or raise IndexError."""
        rows = [row + by for row in self.rows]
        if any(not 0 <= row < self.extents[0] for row in rows):
            raise IndexError(f"rows {rows}")
        if self.is_gathered:
            shown = self.shown + by * math.prod(self.extents[1:])
            return dataclasses.replace(self, shown=shown, rows=rows)
        fixed, live = dict(self.fixed), dict(self.live)
        if 0 in fixed:
            fixed[0] += by
        else:
            live[0] = dataclasses.replace(live[0], start=live[0].start + by)
        return self.place(fixed, live)


def walk(axis: Axis, extent: int, item: slice) -> Axis:
    """Walk from a slice's start to its stop, over the view's own grid inside the base buffer."""
    step = 1 if item.step is None else int(item.step)
    first, end = (0, axis.length) if step > 0 else (axis.length - 1, -1)
    first = first if item.start is None else int(item.start)
    end = end if item.stop is None else int(item.stop)
    positions = {index: axis.at(index) for index in range(-extent - 2, extent + 3)}
    if axis.step < 0:  # the grid is walked from the buffer's end
        positions = {index: extent - 1 - at for index, at in positions.items()}
    lowest = min(index for index, at in positions.items() if at >= 0)
    highest = max(index for index, at in positions.items() if at < extent)
    # NumPy's rule: an end outside is moved to the nearest index that is inside, or just outside.
    low, high = (lowest, highest + 1) if step > 0 else (lowest - 1, highest)
    first, end = min(max(first, low), high), min(max(end, low), high)
    return Axis(axis.at(first), axis.step * step, len(range(first, end, step)))


def spread(index: object, n_dims: int) -> tuple[list[Any], int | None]:
    """Return one item for each dimension, and the position of a `...` that spans none of them.

    Any other `...` is filled up, and masks are the indices that they stand for.
    """
    given: list[Any] = list(index) if isinstance(index, tuple) else [index]
    n_given = sum(np.ndim(item) if is_mask(item) else 1 for item in given if item is not Ellipsis)
    rest = [slice(None)] * (n_dims - n_given)
    items: list[Any] = []
    split = None
    for item in given:
        if item is Ellipsis:
            split = None if rest else len(items)
            items, rest = items + rest, []
        elif is_mask(item):
            places = [place for place, is_set in np.ndenumerate(np.array(item)) if is_set]
            items += [np.array([place[n] for place in places], int) for n in range(np.ndim(item))]
        else:
            items.append(item)
    return items + rest, split


def split_at(place: int | None, key: Iterable[Any]) -> tuple[Any, ...]:
    """Return a key with the `...` that spans nothing: NumPy has arrays on its sides apart."""
    items = list(key)
    return tuple(items) if place is None else (*items[:place], ..., *items[place:])


def is_mask(item: object) -> bool:
    """Tell whether an item of an index is a mask, or a list of one."""
    return not isinstance(item, slice) and item is not Ellipsis and np.asarray(item).dtype == bool


def as_key(entry: int | Axis | NDArray[Any]) -> Any:
    """Return the entry as NumPy takes it in an index."""
    if not isinstance(entry, Axis):
        return entry
    if not entry.length:
        return slice(0, 0)
    stop = entry.at(entry.length)
    return slice(entry.start, None if stop < 0 else stop, entry.step)


def rows_of(entry: int | Axis | NDArray[Any]) -> list[int]:
    """Return the positions on one axis that an entry stands for."""
    if isinstance(entry, Axis):
        return [entry.at(index) for index in range(entry.length)]
    return np.ravel(entry).tolist()


def count_batch_dims(
    entries: dict[int, Any], split: int | None, n_dims: int, n_batch_axes: int
) -> int:
    """Count the leading dimensions that stem from batch axes.

    NumPy tells where it puts them: the same kind of index goes to an array whose axes all have
    their own length. The dimensions of arrays stem from the first axis that has one.
    """
    axis_of = {11 + number: number for number in entries}
    sizes: list[int] = []
    key: list[Any] = []
    arrays = [n for n, entry in entries.items() if isinstance(entry, np.ndarray)]
    n_array_dims = max((entries[n].ndim for n in arrays), default=0)
    if arrays:
        axis_of[7] = arrays[0]
    for number, entry in entries.items():
        sizes.append(11 + number)
        if isinstance(entry, Axis):
            key.append(slice(None))
        else:
            key.append(np.zeros((7,) * n_array_dims, int) if number in arrays else 0)
    shape = np.broadcast_to(np.int8(0), sizes)[split_at(split, key)].shape
    assert len(shape) == n_dims
    is_batch = [axis_of[length] < n_batch_axes for length in shape]
    return (*is_batch, False).index(False)
