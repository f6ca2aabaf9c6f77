"""JaggedArray: elements of different length, each in a slot of its own; its spec and its views."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, SupportsIndex, cast, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray

from parllel import cuda
from parllel.arrays.array import Array, ArrayView, KindSpec
from parllel.arrays.array_spec import ArraySpec
from parllel.arrays.buffer import Buffer
from parllel.arrays.interop import side_of, to_host, to_tensor
from parllel.arrays.jagged import Jagged
from parllel.arrays.jagged_buffer import JaggedBuffer, JaggedLayout
from parllel.arrays.jagged_elements import device_elements, fit_elements
from parllel.arrays.jagged_writer import (
    DROPPED,
    LENGTHS,
    VALUES,
    ElementForm,
    JaggedWriter,
    Overflow,
)
from parllel.arrays.location import Location, row_numbers, shape_of
from parllel.arrays.readable import Place
from parllel.ops.stack_gather import RowSource, as_range
from parllel.storages import KINDS, Memory, Side

_GROWING = ("local", "device", "managed")  # kinds of memory that no other process writes


@dataclass(frozen=True)
class JaggedSpec(KindSpec):
    """Shape, dtype, window and capacity of a JaggedArray; its arguments are a JaggedArray's.

    >>> spec = JaggedSpec.of((5, 2), "float32", (3,), capacity=16)
    >>> spec.shape, spec.nbytes
    ((5, 2, 16, 3), 2128)
    """

    kind = "jagged"

    capacity: int
    on_overflow: Overflow

    @classmethod
    def of(
        cls,
        batch_shape: Sequence[int],
        dtype: DTypeLike,
        feature_shape: Sequence[int] = (),
        padding: int = 0,
        full_size: int | None = None,
        capacity: int | None = None,
        on_overflow: Overflow = "raise",
    ) -> Self:
        """Check the arguments of a JaggedArray, and return them as a spec.

        Args:
            batch_shape, dtype, feature_shape, padding, full_size, capacity, on_overflow: as for
                `JaggedArray`.

        Raises:
            TypeError, ValueError: as for `ArraySpec`; or capacity is missing, no integer or
                negative, or on_overflow is another word.
        """
        plain = ArraySpec.of(batch_shape, dtype, feature_shape, padding, full_size)
        if capacity is None:
            raise TypeError("capacity: got none, expected the most items that an element may have")
        n_items = operator.index(capacity)
        if n_items < 0:
            raise ValueError(f"capacity: got {capacity}, expected 0 or more")
        if on_overflow not in get_args(Overflow):
            raise ValueError(
                f'on_overflow: got {on_overflow!r}, expected "raise", "drop" (items beyond the'
                ' capacity are left out) or "grow" (all slots become larger)'
            )
        return cls(**vars(plain), capacity=n_items, on_overflow=on_overflow)

    def make(self, storage: str | Memory = "local") -> JaggedArray:
        """Allocate a JaggedArray as this spec describes it.

        Args:
            storage: kind of memory, or a block of memory that has room for the JaggedArray.
        """
        return JaggedArray(
            self.batch_shape,
            self.dtype,
            feature_shape=self.feature_shape,
            capacity=self.capacity,
            on_overflow=self.on_overflow,
            storage=storage,
            padding=self.padding,
            full_size=self.full_size,
        )

    @classmethod
    def of_form(cls, batch_shape: Sequence[int], form: ElementForm) -> Self:
        """Return the spec of a JaggedArray of some elements, without padding.

        Args:
            batch_shape: as for `JaggedArray`.
            form: what elements are.
        """
        return cls.of(
            batch_shape, form.dtype, form.item_shape, 0, None, form.capacity, form.on_overflow
        )

    def holds(self, saved: ArraySpec) -> bool:
        """Tell whether saved rows can be loaded; slots that grow take those of larger ones, too."""
        if self.on_overflow == "grow" and isinstance(saved, JaggedSpec):
            saved = saved.changed(capacity=min(saved.capacity, self.capacity))
        return self == saved

    def rows_spec(self, n_rows: int) -> ArraySpec:
        """Return the spec of some rows, jagged as these are.

        Args:
            n_rows: number of rows, each of one environment at one step.
        """
        return self.of_form((n_rows, *self.batch_shape[2:]), self.form)

    @property
    def form(self) -> ElementForm:
        """What elements are."""
        return ElementForm(self.dtype, self.feature_shape, self.capacity, self.on_overflow)

    @property
    def shape(self) -> tuple[int, ...]:
        """Visible shape: that of the slots, [..., capacity, *feature_shape]."""
        return (*self.batch_shape, self.capacity, *self.feature_shape)

    @property
    def layout(self) -> JaggedLayout:
        """The way in which slots and lengths lie in memory."""
        return JaggedLayout((self.window().n_rows, *self.batch_shape[1:]), self.form)

    @property
    def extents(self) -> tuple[int, ...]:
        """Shape of all slots, ring and padding included."""
        return self.layout.extents

    @property
    def nbytes(self) -> int:
        """Bytes of slots and of lengths, and of the gap between them."""
        return self.layout.nbytes

    def __str__(self) -> str:
        return f"{super().__str__()}, capacity {self.capacity}, on_overflow {self.on_overflow!r}"


class JaggedArray(Array):
    """An Array whose elements are arrays of different length, [n, *feature_shape] each.

    >>> clouds = JaggedArray((3, 2), "float32", feature_shape=(2,), capacity=8)
    >>> clouds[0, 1] = [[1, 2], [3, 4], [5, 6]]
    >>> clouds[0, 1].to_ndarray().tolist(), clouds[0, 0].to_ndarray().shape
    ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], (0, 2))
    >>> step = clouds[0].to_ndarray()  # a Jagged: values, and where each element lies
    >>> step.packed().offsets.tolist()
    [0, 0, 3]

    Point clouds and graphs are such elements. Each has a slot, which has room for `capacity` items:
    so environments and workers write side by side in place, and rows can be written again in any
    order. All memory is taken when the JaggedArray is made, `spec.nbytes`. At first, all elements
    have no item. What a slot holds behind its element is never shown.

    A JaggedArray is used as an Array, with these differences:

    - `to_ndarray`, `to_torch` and `to_cupy` of one element give an array [n, *feature_shape], and
      of several elements a `Jagged`, which has them in other forms; neither is a copy, but where
      integer arrays, a mask or a step backward pick the elements (`is_gathered`).
    - Indices are those of the batch dimensions. The items of an element are indexed as it is read.
    - What is written is one element, which all elements become; or a nested list of elements as
      the batch dimensions are, a `Jagged` or JaggedArray of the same batch shape, or an array
      [*batch_shape, n, *feature_shape] of elements of one length. An element that does not fit is
      refused before anything is written.
    - The visible shape is that of the slots, [*batch_shape, capacity, *feature_shape]; `lengths`
      tells how much of it the elements fill.

    On a device, writing elements of the host is one copy of whole slots and one of lengths. One
    element can't be read there without a wait for its length, several can; to write elements that
    are on the device waits for the longest length.

    Args:
        batch_shape: leading dimensions, usually (T, B): steps and environments.
        dtype: type of the values, any NumPy dtype but object.
        feature_shape: shape of one item of an element, such as (3,) for points in space. The
            attribute of that name has the shape of a slot.
        capacity: number of items of the longest element.
        on_overflow: what happens to a longer element: "raise" refuses it, "drop" leaves out its
            last items (which is logged once, and counted in `dropped`), "grow" takes new memory of
            twice the capacity, or more, for all elements. Only memory of one process grows, and
            not where environments write in place. What was read before shows the memory before.
        storage, padding, full_size: as for `Array`.

    Raises:
        TypeError, ValueError, MemoryError: as for `Array`; or capacity or on_overflow is wrong, or
            memory of this kind can't grow.
    """

    __slots__ = ("_numbers",)

    _buffer: JaggedBuffer
    _numbers: range | NDArray[np.int64] | None  # of the slots; None until they are asked for

    def __init__(
        self,
        batch_shape: Sequence[int],
        dtype: DTypeLike,
        *,
        feature_shape: Sequence[int] = (),
        capacity: int,
        on_overflow: Overflow = "raise",
        storage: str | Memory = "local",
        padding: int = 0,
        full_size: int | None = None,
    ) -> None:
        spec = JaggedSpec.of(
            batch_shape, dtype, feature_shape, padding, full_size, capacity, on_overflow
        )
        kind = storage.kind if isinstance(storage, Memory) else storage
        if on_overflow == "grow" and kind in KINDS and kind not in _GROWING:
            raise ValueError(
                f'on_overflow: got "grow" in {kind} memory, which other processes may have;'
                f' expected "raise" or "drop", or memory of one process: {", ".join(_GROWING)}'
            )
        buffer = JaggedBuffer.of_layout(spec.layout, storage)
        window = spec.window()
        self._assemble(buffer, (window.rows, *map(range, buffer.extents[1:])), window)

    def _assemble(self, buffer: Buffer, location: Location, window: Any) -> None:
        super()._assemble(buffer, location, window)
        self._numbers = None

    # What it looks like

    @property
    def shape(self) -> tuple[int, ...]:
        """Visible shape: that of the slots, `batch_shape + (capacity, *item_shape)`."""
        form = self._buffer.form
        return (*self.batch_shape, form.capacity, *form.item_shape)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions, usually (T, B)."""
        return shape_of(self._location)

    def __len__(self) -> int:
        if not self.batch_shape:
            raise TypeError(
                "len() of a JaggedArray without dimensions, which is one element; read it:"
                " len(to_ndarray())"
            )
        return self.batch_shape[0]

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype, window and capacity; a view's too, which has no padding."""
        form = self._buffer.form
        sizes = self.batch_shape, form.dtype, form.item_shape, self.padding, self.full_size
        return JaggedSpec(*sizes, form.capacity, form.on_overflow)

    @property
    def capacity(self) -> int:
        """Number of items that a slot has room for."""
        return self._buffer.form.capacity

    @property
    def on_overflow(self) -> Overflow:
        """What happens to an element that is longer: "raise", "drop" or "grow"."""
        return self._buffer.on_overflow

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one item of an element."""
        return self._buffer.form.item_shape

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of all slots and lengths, those of the ring and the padding included."""
        return sum(part.nbytes for part in self.memory_parts.values())

    @property
    def is_gathered(self) -> bool:
        """Whether what is read of it is a copy, which does not show what is written later."""
        numbers = self._find_numbers()
        return not isinstance(numbers, range) or numbers.step < 1

    @property
    def place(self) -> Place | None:
        """Where the elements lie, as of `Array`; None where they may move."""
        return None if self.may_move else super().place

    @property
    def may_move(self) -> bool:
        """Whether a write may take new memory: where slots grow."""
        return self.on_overflow == "grow"

    # The parts of rows

    @property
    def lengths(self) -> Array:
        """A view of the number of items of each element, int64 [...]; written with the elements."""
        return ArrayView(self._buffer.lengths, self._location)

    @property
    def dropped(self) -> Array | None:
        """A view of the number of items that each element lost, int64 [...].

        None unless `on_overflow="drop"`.
        """
        part = self._buffer.dropped
        return None if part is None else ArrayView(part, self._location)

    @property
    def _slots(self) -> ArrayView:
        self._buffer.check_open()
        whole = map(range, self._buffer.values.extents[self._buffer.n_batch_axes :])
        return ArrayView(self._buffer.values, (*self._location, *whole))

    @property
    def row_writer(self) -> JaggedWriter:
        """The writer for environments, which writes an element and its length."""
        return JaggedWriter(self._buffer.form, self._buffer.warned)

    def row_parts(self, *, checked: bool = False) -> dict[str, Array]:
        """Return the slots, the lengths, and the numbers of dropped items where there may be some.

        Args:
            checked: whether to add the parts that a writer only reads, of which there are none.
        """
        parts: dict[str, Array] = {VALUES: self._slots, LENGTHS: self.lengths}
        dropped = self.dropped
        return parts if dropped is None else {**parts, DROPPED: dropped}

    # Reading

    def to_ndarray(self) -> Any:  # Any: NumPy's array of an element, a Jagged of several
        """Return one element as an array [n, *item_shape], or several as a `Jagged`.

        There is a copy where `is_gathered`, and of device memory, for which the host waits. It is
        read-only, so that a write, which would be lost, raises.
        """
        found = self._read(self._buffer.data_side)
        if self._buffer.is_on_host and not self.is_gathered:
            return found
        found = found.to_ndarray() if isinstance(found, Jagged) else to_host(found)
        values = found.values if isinstance(found, Jagged) else found
        values.flags.writeable = False
        return found

    def to_cupy(self) -> Any:  # Any: as of `to_ndarray`
        """Return one element as an array [n, *item_shape], or several as a `Jagged`, of CuPy.

        For several elements the call waits for nothing; for one, the host waits for its length.

        Raises:
            TypeError: no GPU can use memory of this kind.
        """
        return self._read("gpu")

    def to_torch(self) -> Any:  # Any: a tensor of an element, a Jagged of several
        """Return one element as a tensor [n, *item_shape], or several as a `Jagged`.

        It waits as `to_cupy` does where the memory is the device's, and otherwise for nothing.
        """
        side = self._buffer.side
        found = self._read(side)
        if isinstance(found, Jagged):
            return found.to_torch()
        return to_tensor(found) if side == "host" else cuda.tensor_over(found)

    def _read(self, side: Side) -> Any:
        shape, numbers = self.batch_shape, self._find_numbers()
        if not shape:
            return self._buffer.read_one(int(numbers[0]), side)
        found = self._buffer.read(numbers, side)
        return found if len(shape) == 1 else replace(found, batch_shape=shape)

    def _find_numbers(self) -> range | NDArray[np.int64]:
        """Return the numbers of the slots that are shown, one after the other."""
        if self._numbers is None:
            extents = self._buffer.extents
            numbers = row_numbers(self._location, extents, len(extents))
            self._numbers = as_range(numbers.ravel())
        return self._numbers

    def row_source(self, side: Side, n_axes: int = 2) -> RowSource:
        """Return the slots of the elements that this view shows, as the source of gathers.

        Elements are numbered over all batch dimensions together. The source is this Array's own
        memory, so that a later gather reads what was written until then.

        Args:
            side: the side that gathers, "host" or "gpu".
            n_axes: number of axes that elements are counted over: all batch dimensions.

        Raises:
            TypeError: that side can't use the memory.
            ValueError: the elements do not follow each other in memory, or there are other batch
                dimensions.
        """
        numbers = self._find_numbers()
        if len(self.batch_shape) != n_axes:
            raise ValueError(
                f"row_source: got elements of batch_shape {self.batch_shape}, expected {n_axes}"
                " dimensions; give several agents a branch each, and no dimension"
            )
        if not isinstance(numbers, range) or (len(numbers) > 1 and numbers.step != 1):
            raise ValueError(
                "row_source: got a view with gaps between its rows, expected whole time steps, as"
                " in array, array.full or array[2:5]; gather from them by an index"
            )
        slots, lengths = (self._buffer.flat(name, side) for name in (VALUES, LENGTHS))
        return RowSource(slots, lengths=lengths)[numbers.start : numbers.stop]

    def picked_rows(self) -> None:
        """Return None: rows that integer arrays pick are read where they lie."""

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if self.batch_shape:
            raise TypeError(
                "a JaggedArray is no single array, as its elements have different lengths:"
                " to_ndarray() gives a Jagged, and array[t, b] one element"
            )
        if not self._buffer.is_on_host:
            return super().__array__(dtype, copy)  # which refuses
        return np.array(self.to_ndarray(), dtype=dtype, copy=copy)

    def __dlpack__(self, **_: Any) -> Any:
        self._buffer.check_open()
        raise BufferError(
            "a JaggedArray is not exported by DLPack: to_torch() gives tensors over its memory"
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise AttributeError("a JaggedArray has no array interface: to_cupy() gives arrays")

    # Views, and writing

    def _view(self, location: Location, data: NDArray[Any] | None = None) -> JaggedArray:
        return JaggedView(self._buffer, location)

    def __getitem__(self, index: Any) -> JaggedArray:
        return cast("JaggedArray", super().__getitem__(index))

    def __setitem__(self, index: Any, value: object) -> None:
        view, buffer = self if index is Ellipsis else self[index], self._buffer
        buffer.check_open()
        numbers, shape = view._find_numbers(), view.batch_shape
        if side_of(value) == "gpu" and not buffer.is_on_host:
            buffer.put_from_device(numbers, device_elements(value, buffer.form, shape))
        else:
            buffer.put(numbers, fit_elements(value, buffer.form, shape))

    def check_values(self, value: object) -> bool:
        """Raise what writing a value to all of this view would raise; return True otherwise.

        Args:
            value: as for a write. What is on a device is looked at when it is written.
        """
        if side_of(value) == "host" or self._buffer.is_on_host:
            fit_elements(value, self._buffer.form, self.batch_shape)
        return True

    def _write(self, location: Location, value: object) -> None:
        self._view(location)[...] = value

    def __repr__(self) -> str:
        form = self._buffer.form
        about = f"batch_shape={self.batch_shape}, elements of {form}, storage={self.storage!r}"
        if self._buffer.is_closed:
            return f"JaggedArray(closed, {about})"
        if not self.batch_shape:
            values = np.array2string(self.to_ndarray(), separator=", ", prefix="JaggedArray(")
            return f"JaggedArray({values}, {about})"
        lengths = np.array2string(
            self.lengths.to_ndarray(), separator=", ", prefix="JaggedArray(lengths="
        )
        return f"JaggedArray(lengths={lengths}, {about})"


class JaggedView(JaggedArray, ArrayView):
    """A part of a JaggedArray, always of the same rows.

    >>> clouds = JaggedArray((3, 2), "float32", capacity=4)
    >>> clouds[1:].batch_shape
    (2, 2)

    Args:
        buffer: memory of the JaggedArray.
        location: the part of the batch dimensions that the view shows.
    """

    __slots__ = ()

    def __init__(self, buffer: JaggedBuffer, location: Location) -> None:
        self._assemble(buffer, location, None)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:  # Any: as pickle has it
        if not self._buffer.is_private:
            return object.__reduce_ex__(self, protocol)
        shape = self.batch_shape
        found = self.to_ndarray()
        values = found.packed() if isinstance(found, Jagged) else found.copy()
        dropped = None if self.dropped is None else self.dropped.to_ndarray().copy()
        return _copy_of, (values, dropped, self._buffer.form, shape, self.storage)


def _copy_of(elements: Any, dropped: Any, form: ElementForm, shape: Any, kind: str) -> JaggedArray:
    """Return a view of elements that another process sent."""
    array = JaggedSpec.of_form(shape or (1,), form).make(kind if kind in KINDS else "local")
    view = array[...] if shape else array[0]
    view[...] = elements
    if view.dropped is not None:
        view.dropped[...] = dropped
    return view
