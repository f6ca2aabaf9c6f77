"""JaggedNumbers: a JaggedArray that looks like an Array of numbers, so that contracts can hold it.

A number is an element whose items all are that number. Zero has no item, as a new element has none;
of other numbers the bytes tell how many items there are. Indices, writes, windows, copies and
pickles are JaggedArray's own: what is written becomes elements, and what is read numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from parllel import Array, Jagged, JaggedArray, cuda
from parllel.arrays import JaggedSpec
from parllel.arrays.interop import to_host
from parllel.arrays.jagged_array import JaggedView
from parllel.arrays.jagged_writer import ElementForm
from parllel.arrays.location import Location
from parllel.storages import Memory

CAPACITY = 3


def elements_of(numbers: NDArray[Any], form: ElementForm) -> Any:
    """Return numbers [..., *item_shape] of any dtype as elements: a nested list, or one element."""
    if numbers.ndim > len(form.item_shape):
        return [elements_of(np.asarray(each), form) for each in numbers]
    if form.dtype.names:  # nothing else becomes a record
        numbers = numbers.astype(form.dtype)
    return np.repeat(numbers[None], count_items(numbers, form.dtype), axis=0)


def count_items(number: NDArray[Any], dtype: np.dtype[Any]) -> int:
    """Return the number of items of a number's element; 1 where the dtype can't hold the number."""
    try:
        with np.errstate(all="ignore"):
            total = sum(number.astype(dtype).tobytes())
    except (TypeError, ValueError):
        return 1
    return 1 + total % CAPACITY if total else 0


def numbers_of(elements: Any, item_shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the numbers of some elements, or of one; refuse one with other items than its own."""
    if not isinstance(elements, Jagged):
        zero = np.zeros((1, *item_shape), elements.dtype)
        first = np.concatenate([elements, zero])[0]
        assert len(elements) == count_items(first, first.dtype), elements
        assert all(item.tobytes() == first.tobytes() for item in elements), elements
        return np.array(first)
    numbers = np.zeros((math.prod(elements.batch_shape), *item_shape), elements.dtype)
    flat = elements.flatten(0, len(elements.batch_shape) - 1)
    for number, element in enumerate(flat):
        numbers[number] = numbers_of(element, item_shape)
    return numbers.reshape(*elements.batch_shape, *item_shape)


@dataclass(frozen=True)
class NumbersSpec(JaggedSpec):
    """The spec of JaggedNumbers, whose visible shape is that of the numbers."""

    kind = "jagged numbers"

    def make(self, storage: str | Memory = "local") -> JaggedNumbers:
        return JaggedNumbers(
            self.batch_shape,
            self.dtype,
            feature_shape=self.feature_shape,
            storage=storage,
            padding=self.padding,
            full_size=self.full_size,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.batch_shape, *self.feature_shape)


class JaggedNumbers(JaggedArray):
    """A JaggedArray that is written and read as an Array of numbers [*batch_shape, *item_shape]."""

    __slots__ = ()

    def __init__(self, batch_shape: Sequence[int], dtype: Any = np.float32, **options: Any) -> None:
        super().__init__(batch_shape, dtype, capacity=CAPACITY, **options)

    @property
    def bare(self) -> JaggedArray:
        """The same elements, as a JaggedArray shows them."""
        return JaggedView(self._buffer, self._location)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.batch_shape, *self.item_shape)

    @property
    def spec(self) -> NumbersSpec:
        return NumbersSpec(**vars(super().spec))

    def _view(self, location: Location, data: Any = None) -> JaggedNumbers:
        return NumbersView(self._buffer, location)

    def _as_elements(self, index: Any, value: Any) -> tuple[JaggedArray, Any]:
        """Return the rows that are written, and what is written into them."""
        rows = self.bare if index is Ellipsis else self.bare[index]
        if isinstance(value, JaggedNumbers) and value.batch_shape in ((), rows.batch_shape):
            return rows, value.bare
        numbers = np.asarray(to_host(value))
        while numbers.ndim > len(rows.batch_shape) + len(self.item_shape) and len(numbers) == 1:
            numbers = numbers[0]
        numbers = np.broadcast_to(numbers, (*rows.batch_shape, *self.item_shape))
        return rows, elements_of(numbers, self._buffer.form)

    def __setitem__(self, index: Any, value: Any) -> None:
        rows, elements = self._as_elements(index, value)
        rows[...] = elements

    def check_values(self, value: Any) -> bool:
        rows, elements = self._as_elements(..., value)
        return rows.check_values(elements)

    def to_ndarray(self) -> NDArray[Any]:
        numbers = numbers_of(self.bare.to_ndarray(), self.item_shape)
        numbers.flags.writeable = False  # a copy, which nothing that is written to it would leave
        return numbers

    def to_torch(self) -> Any:
        import torch

        found = self.bare.to_torch()
        found = found.to_ndarray() if isinstance(found, Jagged) else to_host(found)
        return torch.from_numpy(numbers_of(found, self.item_shape))

    def to_cupy(self) -> Any:
        if not self.is_for_gpu:
            return super().to_cupy()  # which refuses
        found = self.bare.to_cupy()
        found = found.to_ndarray() if isinstance(found, Jagged) else to_host(found)
        return cuda.to_device(numbers_of(found, self.item_shape))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if not self._buffer.is_on_host:
            return Array.__array__(self, dtype, copy)  # which refuses
        return np.array(self.to_ndarray(), dtype=dtype, copy=copy)


class NumbersView(JaggedNumbers, JaggedView):
    """A part of JaggedNumbers."""

    __slots__ = ()

    def __init__(self, buffer: Any, location: Location) -> None:
        JaggedView.__init__(self, buffer, location)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        self._buffer.check_open()
        return _view_of, (self.bare,)


def _view_of(bare: JaggedArray) -> NumbersView:
    return NumbersView(bare._buffer, bare._location)
