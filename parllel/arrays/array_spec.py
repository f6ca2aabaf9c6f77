"""ArraySpec: kind, shape, dtype and window of an Array, before it has memory."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from parllel.arrays.window import Window
from parllel.storages import nbytes_of

Value = TypeVar("Value")


@dataclass(frozen=True)
class ArraySpec:
    """Shape, dtype and window of an Array, checked; its arguments are those of `Array`.

    Each kind of Array has a spec of its own, which answers the same questions.

    >>> spec = ArraySpec.of((5, 2), "float32", (3,), padding=1)
    >>> spec.shape, spec.extents, spec.nbytes
    ((5, 2, 3), (7, 2, 3), 168)
    """

    kind: ClassVar[str] = "array"
    """Name of the kind of Array in saved files."""

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
        """Check the arguments of an Array, and return them as a spec.

        Args:
            batch_shape, dtype, feature_shape, padding, full_size: as for `Array`.

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
        """Return a spec like this one, but for the arguments that are given and not None.

        With another T and no `full_size`, the ring has T rows.

        Args:
            changes: arguments of `of`.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        if tuple(given.get("batch_shape", self.batch_shape))[:1] != self.batch_shape[:1]:
            kept["full_size"] = None
        return type(self).of(**(kept | given))

    def window(self) -> Window:
        """Return a new window at the beginning of the ring."""
        return Window(self.batch_shape[0], self.full_size, self.padding)

    @property
    def shape(self) -> tuple[int, ...]:
        """Visible shape of the Array: its batch dimensions and the shape of one sample."""
        return self.batch_shape + self.feature_shape

    @property
    def n_older_steps(self) -> int:
        """The number of steps before a row that belong to its sample, too."""
        return 0

    def rows_spec(self, n_rows: int) -> ArraySpec:
        """Return the spec of some rows as they are stored, without the steps before them.

        Args:
            n_rows: number of rows, each of one environment at one step.
        """
        return ArraySpec.of((n_rows, *self.batch_shape[2:]), self.dtype, self.feature_shape)

    def row_of(self, sample: Value) -> Value:
        """Return the part of a sample that its own row stores; in a plain Array, all of it.

        Args:
            sample: a sample of one environment at one step.
        """
        return sample

    def holds(self, saved: ArraySpec) -> bool:
        """Tell whether rows that were saved by a spec can be loaded into an Array of this one."""
        return self == saved

    @property
    def extents(self) -> tuple[int, ...]:
        """Shape of the base buffer: the ring with its padding, and the other dimensions."""
        return (self.window().n_rows, *self.batch_shape[1:], *self.feature_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the base buffer."""
        return nbytes_of(self.extents, self.dtype)

    def to_entry(self) -> dict[str, Any]:
        """Return the entry for a saved file: kind, shape and window, without dtype, for JSON."""
        entry = {field.name: getattr(self, field.name) for field in fields(self)}
        del entry["dtype"]
        return {"kind": self.kind, **entry}

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}, padding {self.padding}, full_size {self.full_size}"


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
