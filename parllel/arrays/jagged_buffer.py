"""JaggedBuffer: the slots of a JaggedArray, with the lengths of the elements in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays.buffer import Buffer
from parllel.arrays.interop import apart_from, put_on_device, to_device, to_host
from parllel.arrays.jagged import Jagged
from parllel.arrays.jagged_elements import DeviceElements
from parllel.arrays.jagged_writer import (
    DROPPED,
    LENGTH,
    LENGTHS,
    VALUES,
    ElementForm,
    Fitted,
    Overflow,
    warn_of_dropped,
)
from parllel.arrays.parted_buffer import PartedBuffer
from parllel.cuda import AnyArray
from parllel.storages import KINDS, Memory, Side, aligned, allocate, nbytes_of

Numbers: TypeAlias = "range | NDArray[np.int64]"
"""Numbers of slots, over all batch dimensions together."""


class JaggedLayout(NamedTuple):
    """The sizes of a JaggedArray's memory.

    >>> import numpy as np
    >>> form = ElementForm(np.dtype(np.float32), (3,), capacity=16, on_overflow="raise")
    >>> layout = JaggedLayout((6, 2), form)
    >>> layout.extents, layout.nbytes
    ((6, 2, 16, 3), 2400)

    Args:
        batch_shape: number of rows, ring and padding included, and the other batch dimensions.
        form: what elements are.
    """

    batch_shape: tuple[int, ...]
    form: ElementForm

    @property
    def extents(self) -> tuple[int, ...]:
        """Shape of all slots."""
        return (*self.batch_shape, self.form.capacity, *self.form.item_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of slots, of lengths, of the numbers of dropped items, and of the gaps between."""
        counts = nbytes_of(self.batch_shape, LENGTH)
        slots = aligned(nbytes_of(self.extents, self.form.dtype))
        return slots + (aligned(counts) + counts if self.form.on_overflow == "drop" else counts)


class JaggedBuffer(PartedBuffer):
    """Slots of one capacity, each with an element; its `extents` are the batch dimensions.

    >>> import numpy as np
    >>> form = ElementForm(np.dtype(np.float32), (3,), capacity=16, on_overflow="raise")
    >>> JaggedBuffer.of_layout(JaggedLayout((6, 2), form), "local").extents
    (6, 2)

    What a slot holds behind its element has no meaning.

    Args:
        values: buffer of the slots [n_rows, ..., capacity, *item_shape].
        lengths: buffer of int64 [n_rows, ...], the number of items of each element.
        dropped: the same of the items that were left out; None where none may be.
        on_overflow: what happens to an element that is longer than its slot.
    """

    __slots__ = ("dropped", "lengths", "on_overflow", "values", "warned")

    def __init__(
        self, values: Buffer, lengths: Buffer, dropped: Buffer | None, on_overflow: Overflow
    ) -> None:
        parts = {VALUES: values, LENGTHS: lengths}
        super().__init__(parts if dropped is None else {**parts, DROPPED: dropped})
        self.values, self.lengths, self.dropped = values, lengths, dropped
        self.on_overflow: Overflow = on_overflow
        self.warned: list[str] = []  # of items that were dropped: what was the first element
        self.extents = lengths.extents

    @classmethod
    def of_layout(cls, layout: JaggedLayout, storage: str | Memory) -> JaggedBuffer:
        """Return a buffer of empty elements in new memory, or in the next part of a block.

        Args:
            layout: the sizes.
            storage: kind of memory, or a block of memory that has room.
        """
        wanted = aligned(layout.nbytes)
        memory = storage if isinstance(storage, Memory) else allocate(storage, wanted)
        shape, form = layout.batch_shape, layout.form
        values = Buffer.allocate(memory, layout.extents, form.dtype, len(shape))
        lengths = Buffer.allocate(memory, shape, LENGTH, len(shape))
        dropped = None
        if form.on_overflow == "drop":
            dropped = Buffer.allocate(memory, shape, LENGTH, len(shape))
        return cls(values, lengths, dropped, form.on_overflow)

    @property
    def form(self) -> ElementForm:
        """What elements are."""
        capacity, *item_shape = self.values.extents[self.n_batch_axes :]
        return ElementForm(self.dtype, tuple(item_shape), capacity, self.on_overflow)

    def flat(self, name: str, side: Side) -> AnyArray:
        """Return a part with one axis for all slots, as the array that a side works on.

        Args:
            name: the part: slots become [n, capacity, *item_shape], lengths [n].
            side: "host" or "gpu".
        """
        self.check_open()
        part = self.buffers[name].on_side(side)
        n_axes = self.n_batch_axes
        return part.reshape(math.prod(part.shape[:n_axes]), *part.shape[n_axes:])

    def read(self, numbers: Numbers, side: Side) -> Jagged:
        """Return the elements of some slots: over their memory where the numbers step forward.

        Otherwise they are a copy, of whole slots and of lengths, as NumPy's indexing makes one.

        Args:
            numbers: the slots, in the order of the elements.
            side: the side that reads, for which arrays of NumPy or CuPy are returned.

        Raises:
            ValueError: in host memory, a length is none of a slot.
        """
        slots, lengths = (self.flat(name, side) for name in (VALUES, LENGTHS))
        if not len(numbers):
            numbers = range(0)
        if isinstance(numbers, range) and numbers.step > 0:
            lengths = lengths[numbers.start : numbers.stop : numbers.step]
        else:  # a length that is read now, and items that are written later, would not agree
            slots, lengths = _pick(slots, numbers), _pick(lengths, numbers)
            numbers = range(len(numbers))
        n_slots, capacity, *item_shape = slots.shape
        items = slots.reshape(n_slots * capacity, *item_shape)
        begins = np.asarray(numbers, np.int64) * capacity
        lowest = int(begins.min(initial=n_slots * capacity))
        end = int(begins.max(initial=lowest - capacity)) + capacity
        if isinstance(lengths, np.ndarray):
            check_lengths(lengths, capacity)
        offsets = np.append(begins, end) - lowest
        if side == "gpu":
            return Jagged(items[lowest:end], cuda.to_device(offsets), lengths)
        return Jagged(items[lowest:end], offsets, lengths)

    def read_one(self, number: int, side: Side) -> AnyArray:
        """Return the element of a slot, which is not copied; the host waits for its length.

        Args:
            number: the slot.
            side: the side that reads, for which an array of NumPy or CuPy is returned.
        """
        slots, lengths = (self.flat(name, side) for name in (VALUES, LENGTHS))
        length = to_host(lengths[number : number + 1])
        check_lengths(length, slots.shape[1])
        return slots[number, : int(length[0])]

    def put(self, numbers: Numbers, elements: Sequence[Fitted]) -> None:
        """Write an element of the host to each of some slots.

        On a device, whole slots are copied there, and their lengths.
        """
        lengths = np.array([len(each.items) for each in elements], np.int64)
        self._make_room(int(lengths.max(initial=0)))
        self._count_dropped(numbers, [each.n_dropped for each in elements])
        if self.is_on_host:
            slots = self.flat(VALUES, "host")
            # A slot may be read for a later element after an earlier one is written to it.
            apart = [apart_from(slots, items) for items, _ in elements]
            for number, items in zip(numbers, apart, strict=True):
                slots[number, : len(items)] = items
        else:
            rows = np.zeros((len(elements), *self.flat(VALUES, "gpu").shape[1:]), self.dtype)
            for slot, (items, _) in zip(rows, elements, strict=True):
                slot[: len(items)] = items
            self._assign(self.flat(VALUES, "gpu"), numbers, rows)
        self._assign(self.flat(LENGTHS, self.data_side), numbers, lengths)

    def put_from_device(self, numbers: Numbers, elements: DeviceElements) -> None:
        """Write an element of a device to each of some slots on the device."""
        self._make_room(elements.longest)
        self._count_dropped(numbers, elements.dropped)
        if elements.longest:
            slots = self.flat(VALUES, self.data_side)[:, : elements.longest]
            self._assign(slots, numbers, elements.rows)
        self._assign(self.flat(LENGTHS, self.data_side), numbers, elements.lengths)

    def _assign(self, out: AnyArray, numbers: Numbers, values: Any) -> None:
        """Write values [n, ...] to rows of an array, whichever memory it is in."""
        place: Any = np.asarray(numbers, np.int64)
        if isinstance(numbers, range) and numbers.step > 0:
            place = slice(numbers.start, numbers.stop, numbers.step)
        if self.is_on_host:
            out[place] = to_host(values)
        elif isinstance(place, slice):
            put_on_device(values, out_device=out[place])
        else:
            cuda.check_current(out)
            with cuda.use_stream():
                out[cuda.to_device(place)] = to_device(values)

    def make_room(self, shape: Sequence[int]) -> None:
        """Take memory for the slots of a shape, where they are larger."""
        capacity = shape[self.n_batch_axes]
        if capacity > self.form.capacity:
            self.enlarge(capacity)

    def _make_room(self, n_items: int) -> None:
        if n_items > self.form.capacity:
            self.grow(n_items)

    def _count_dropped(self, numbers: Numbers, n_dropped: Sequence[int]) -> None:
        if self.dropped is None:
            return
        counts = np.array(n_dropped, np.int64)
        self._assign(self.flat(DROPPED, self.data_side), numbers, counts)
        if any(n_dropped) and not self.warned:
            at = int(counts.argmax())
            self.warned.append(f"element {at} of {len(counts)}")
            warn_of_dropped(self.warned[0], n_dropped[at], self.form)

    def grow(self, n_items: int) -> None:
        """Take memory for longer elements, twice as much as often as it needs to be.

        Args:
            n_items: items of the longest element that is to be written.
        """
        capacity = max(1, self.form.capacity)
        while capacity < n_items:
            capacity *= 2
        self.enlarge(capacity)

    def enlarge(self, capacity: int) -> None:
        """Take memory for slots of a larger capacity, to which the elements are copied.

        Args:
            capacity: items that each slot has room for.
        """
        form, old = self.form, self.values
        batch_shape = self.lengths.extents
        shape = (*batch_shape, capacity, *form.item_shape)
        kind = (
            self.kind if self.kind in KINDS else "local"
        )  # files that are mapped stay as they are
        new = Buffer.allocate(kind, shape, self.dtype, self.n_batch_axes)
        kept = (*[slice(None)] * self.n_batch_axes, slice(0, form.capacity))
        with self.in_order():
            new.data[kept] = old.data
        assert self.memory is not None
        assert new.memory is not None
        new.memory.acquire()
        self.memory.release()
        self.memory, self._data, self._offset = new.memory, new.data, new._offset
        self.values = self.buffers[VALUES] = new
        old.close()

    def __reduce__(self) -> tuple[Any, ...]:
        self.check_open()
        return JaggedBuffer, (self.values, self.lengths, self.dropped, self.on_overflow)


def check_lengths(lengths: NDArray[np.int64], capacity: int) -> None:
    """Raise ValueError where a length is none of a slot: what is behind it would be shown."""
    if len(lengths) and not (lengths.min() >= 0 and lengths.max() <= capacity):
        wrong = lengths[(lengths < 0) | (lengths > capacity)][0]
        raise ValueError(
            f"JaggedArray: got a length of {wrong}, expected 0 to {capacity}: something else has"
            " written to its memory"
        )


def _pick(rows: AnyArray, numbers: Numbers) -> AnyArray:
    """Return a copy of some rows of an array of NumPy or CuPy."""
    picked = np.asarray(numbers, np.int64)
    if isinstance(rows, np.ndarray):
        return rows[picked]
    cuda.check_current(rows)
    with cuda.use_stream():
        return rows[cuda.to_device(picked)]
