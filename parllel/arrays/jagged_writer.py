"""ElementForm, JaggedWriter: how elements of different length are fitted and written to slots."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel.arrays.array_spec import ArraySpec
from parllel.arrays.interop import to_host
from parllel.arrays.row_writer import RowWriter

Overflow: TypeAlias = Literal["raise", "drop", "grow"]
"""What happens to an element that is longer than its slot."""

VALUES, LENGTHS, DROPPED = "values", "lengths", "dropped"
LENGTH = np.dtype(np.int64)  # of lengths, and of numbers of items

_NUMBERS = "biuf"  # kinds of dtypes whose numbers can be compared after a conversion

_logger = logging.getLogger(__name__)


class Fitted(NamedTuple):
    """An element as it is stored.

    Args:
        items: [n, *item_shape], of the form's dtype.
        n_dropped: so many items at the element's end are left out.
    """

    items: NDArray[Any]
    n_dropped: int


@dataclass(frozen=True)
class ElementForm:
    """What elements of a JaggedArray are: items of one shape and dtype, up to a number of them.

    >>> form = ElementForm(np.dtype("float32"), (2,), capacity=3, on_overflow="drop")
    >>> form.fit(np.ones((4, 2)), "element 0").n_dropped
    1

    Args:
        dtype: type of the values.
        item_shape: shape of an item.
        capacity: number of items that a slot has room for.
        on_overflow: what happens to a longer element.
    """

    dtype: np.dtype[Any]
    item_shape: tuple[int, ...]
    capacity: int
    on_overflow: Overflow

    def __str__(self) -> str:
        shape = ", ".join(map(str, ("n", *self.item_shape)))
        return f"({shape}), {self.dtype}, with n from 0 to {self.capacity}"

    def fit(self, element: object, name: str) -> Fitted:
        """Return an element as it is stored: with its own dtype, and nothing lost but digits.

        Args:
            element: array [n, *item_shape] of any library, or a list; an empty list has no item.
            name: what errors call the element.

        Raises:
            ValueError: it has other items, is no array of numbers, the dtype can't hold one of
                its numbers; or it is longer than a slot, unless items are to be dropped, or the
                slots are to grow.
        """
        items = self._as_array(element, name)
        if items.shape[1:] != self.item_shape or not items.ndim:
            if isinstance(element, list | tuple) and not len(element):
                items = np.empty((0, *self.item_shape), self.dtype)
            else:
                raise ValueError(f"{name}: got {_describe(items)}, expected {self}")
        n_dropped = max(0, len(items) - self.capacity)
        if n_dropped and self.on_overflow != "grow":
            if self.on_overflow == "raise":
                raise ValueError(
                    f"{name}: got {len(items)} items, expected up to {self.capacity}, the capacity;"
                    ' allocate more, or choose on_overflow="drop" to leave out the last ones'
                )
            items = items[: self.capacity]
        else:
            n_dropped = 0
        return Fitted(fit_dtype(items, self.dtype, name), n_dropped)

    def _as_array(self, element: object, name: str) -> NDArray[Any]:
        try:
            items = np.asarray(to_host(element))
        except (ValueError, TypeError) as error:  # a ragged list, or no array at all
            text = f"{type(element).__name__}: {error}"
            raise ValueError(f"{name}: got {text}, expected {self}") from error
        if items.dtype.hasobject:
            raise ValueError(f"{name}: got {_describe(items)}, expected {self}")
        return items


def fit_dtype(items: NDArray[Any], target: np.dtype[Any], name: str) -> NDArray[Any]:
    """Return items of another dtype; floats may be rounded, nothing else is lost.

    >>> fit_dtype(np.array([1, 2]), np.dtype("uint8"), "element 0")
    array([1, 2], dtype=uint8)

    Args:
        items: array.
        target: the dtype.
        name: what errors call the items.

    Raises:
        ValueError: the dtype can't hold one of the numbers, or the items are no numbers.
    """
    source = items.dtype
    if source == target:
        return items
    if not (source.kind in _NUMBERS and target.kind in _NUMBERS):
        if np.can_cast(source, target, "same_kind"):
            return items.astype(target)
        raise ValueError(f"{name}: got dtype {source}, expected {target}")
    with np.errstate(all="ignore"):
        fitted = items.astype(target)
        if source.kind == "f" and target.kind == "f":
            is_held = np.isfinite(fitted) | ~np.isfinite(items)
        else:
            is_held = (fitted.astype(source) == items) & ((fitted < 0) == (items < 0))
    if not is_held.all():
        lost = items[~is_held].flat[0]
        raise ValueError(f"{name}: got {lost} of {source}, expected a number of {target}")
    return fitted


def warn_of_dropped(name: str, n_dropped: int, form: ElementForm) -> None:
    """Log that items were dropped, which a caller does once."""
    _logger.warning(
        "%s: %d items were dropped, as it has more than %d; later ones are dropped without a"
        " word, and counted: JaggedArray.dropped",
        name,
        n_dropped,
        form.capacity,
    )


@dataclass(frozen=True)
class JaggedWriter(RowWriter):
    """Writes elements of different length to their slots, with their lengths beside them.

    >>> writer = JaggedWriter(ElementForm(np.dtype("float32"), (2,), 3, "raise"))
    >>> parts = {"values": np.zeros((2, 3, 2), "f4"), "lengths": np.zeros(2, int)}
    >>> writer.write(parts, [np.ones((1, 2)), np.zeros((0, 2))])
    >>> parts["lengths"].tolist()
    [1, 0]

    Args:
        form: what elements are.
        warned: names of elements that items were dropped of, the first one only: it is told then,
            and never again by writers that have the same list.
    """

    form: ElementForm
    warned: list[str] = field(default_factory=list, compare=False, repr=False)

    @property
    def sample_form(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of a whole slot; elements may have fewer items."""
        return (self.form.capacity, *self.form.item_shape), self.form.dtype

    @property
    def longest(self) -> int | None:
        """The capacity, unless items may be dropped: memory that others write can't grow."""
        return None if self.form.on_overflow == "drop" else self.form.capacity

    def part_specs(self, batch_shape: Sequence[int]) -> dict[str, ArraySpec]:
        """Return the specs of slots and of lengths, for rows in memory of their own."""
        form = self.form
        shape = (form.capacity, *form.item_shape)
        specs = {
            VALUES: ArraySpec.of(batch_shape, form.dtype, shape),
            LENGTHS: ArraySpec.of(batch_shape, LENGTH),
        }
        if form.on_overflow == "drop":
            specs[DROPPED] = ArraySpec.of(batch_shape, LENGTH)
        return specs

    def write(self, parts: Mapping[str, NDArray[Any]], samples: Sequence[Any]) -> None:
        """Write one element of each environment.

        Args:
            parts: slots [n, capacity, *item_shape] and lengths [n], overwritten; and the numbers
                of dropped items [n], where items may be dropped.
            samples: n elements.

        Raises:
            ValueError: an element does not fit (`ElementForm.fit`). The elements before it are
                written. A slot that is written in place can't grow.
        """
        values, lengths, dropped = parts[VALUES], parts[LENGTHS], parts.get(DROPPED)
        if values.shape[1:] != self.sample_form[0]:  # items would spread over other rows
            raise ValueError(
                f"rows of elements: got slots of shape {values.shape[1:]}, expected"
                f" {self.sample_form[0]}; rows of a single environment have no axis for it"
            )
        for row, sample in enumerate(samples):
            name = f"observation of environment {row}"
            items, n_dropped = self.form.fit(sample, name)
            n_items = len(items)
            if n_items > self.form.capacity:
                raise ValueError(
                    f"{name}: got {n_items} items, expected up to {self.form.capacity}: memory that"
                    " environments write in place can't grow; allocate a larger capacity"
                )
            values[row, :n_items] = items
            lengths[row] = n_items
            if dropped is not None:
                dropped[row] = n_dropped
            if n_dropped and not self.warned:
                self.warned.append(name)
                warn_of_dropped(name, n_dropped, self.form)


def _describe(items: NDArray[Any]) -> str:
    return f"{items.shape}, {items.dtype}"
