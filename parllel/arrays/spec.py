"""ArraySpec: what an Array looks like before it has memory."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import DTypeLike

from parllel.arrays.window import Window
from parllel.storages import Memory, nbytes_of

if TYPE_CHECKING:
    from parllel.arrays.array import Array


@dataclass(frozen=True)
class ArraySpec:
    """Shape, dtype and window of an Array, checked; its arguments are those of `Array`."""

    batch_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    feature_shape: tuple[int, ...]
    padding: int
    full_size: int

    @classmethod
    def of(
        cls,
        batch_shape: Sequence[int],
        dtype: DTypeLike,
        feature_shape: Sequence[int] = (),
        padding: int = 0,
        full_size: int | None = None,
    ) -> Self:
        """Check what a user gives. `full_size` is T by default.

        Raises:
            TypeError: dtype is object, or a length is no integer.
            ValueError: padding is larger than T, full_size is no multiple of T.
        """
        shape = _lengths("batch_shape", batch_shape)
        if not shape:
            raise ValueError("batch_shape: got (), expected at least one dimension, as in (T, B)")
        full_size = shape[0] if full_size is None else operator.index(full_size)
        features = _lengths("feature_shape", feature_shape)
        spec = cls(shape, _element_type(dtype), features, operator.index(padding), full_size)
        spec.window()  # checks padding and full_size
        return spec

    def changed(self, **changes: Any) -> Self:
        """Return a spec that differs from this one in the arguments of `of` that are not None.

        With another T and no `full_size`, the ring has T rows.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        if tuple(given.get("batch_shape", self.batch_shape))[:1] != self.batch_shape[:1]:
            kept["full_size"] = None
        return type(self).of(**(kept | given))

    def make(self, storage: str | Memory = "local") -> Array:
        """Allocate an Array that looks like this, in memory of a kind or in a block of it."""
        from parllel.arrays.array import Array  # here, because an Array knows its spec

        return Array(
            self.batch_shape,
            self.dtype,
            feature_shape=self.feature_shape,
            storage=storage,
            padding=self.padding,
            full_size=self.full_size,
        )

    def window(self) -> Window:
        """Return a new window at the beginning of the ring."""
        return Window(self.batch_shape[0], self.full_size, self.padding)

    @property
    def extents(self) -> tuple[int, ...]:
        """Shape of the base buffer: the ring with its padding, and the other dimensions."""
        return (self.window().n_rows, *self.batch_shape[1:], *self.feature_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the base buffer."""
        return nbytes_of(self.extents, self.dtype)


def _lengths(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    given = (shape,) if isinstance(shape, int) else shape
    lengths = tuple(operator.index(length) for length in given)
    if any(length < 0 for length in lengths):
        raise ValueError(f"{name}: got {lengths}, expected lengths of 0 or more")
    return lengths


def _element_type(dtype: DTypeLike) -> np.dtype[Any]:
    element_type = np.dtype(dtype)
    if element_type.itemsize == 0:
        raise TypeError(f"dtype: got {element_type!r}, expected elements of 1 byte or more, as S8")
    if element_type.hasobject:
        raise TypeError(
            f"dtype: got {element_type}, expected numbers or booleans: Python objects can't live in"
            " raw memory; keep them in a list of your own"
        )
    return element_type
