"""Array: rows of samples in memory of any kind, seen through a window; and the views of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from parllel.arrays.buffer import Buffer
from parllel.arrays.interop import apart_from, describe, narrow, put_on_device, to_host
from parllel.arrays.location import Location, is_gathered, keys, locate, shift
from parllel.arrays.readable import Readable
from parllel.arrays.spec import ArraySpec
from parllel.arrays.window import Window
from parllel.storages import Memory, allocate

# The way of an integer index, resolved once for each Array: the rows that it may reach with the
# later axes applied, then start, step and number of them, the columns, and the location around.
_Lead = tuple[NDArray[Any], int, int, int, int, Location, Location]


class Array(Readable):
    """A store of samples: `batch_shape` rows of `feature_shape`, zero at the beginning.

    Indices work as in NumPy, with one difference: a negative index means before the beginning.
    With padding, `array[-1]` is the row before the first and `array[array.last + 1]` the one
    after the last. Indexing returns a view: writing into it writes into this Array, also with
    integer arrays and masks.

    In device memory, writing and rotating are work of the caller's current stream: they return
    at once, and work of another stream must wait for it (`cuda.Event`). Values in pinned or
    managed memory are read when the stream gets there, and must stay as they are until then;
    other values of the host are taken before a write returns. No operation waits for the whole
    device.

    Args:
        batch_shape: leading dimensions, usually (T, B): steps and environments.
        dtype: of the elements; any NumPy dtype but object.
        feature_shape: trailing dimensions, of one sample.
        storage: kind of memory ("local", "shared", "inherited", "pinned", "managed", "device"), or
            a block of it to be placed in.
        padding: rows kept before and after the window, at most T. `rotate` carries them over.
        full_size: rows of the ring that the window slides over, a multiple of T; T by default.

    Raises:
        TypeError: dtype is object, or one that memory of this kind can't hold.
        ValueError: padding is larger than T, full_size is no multiple of T, unknown storage.
        CudaUnavailableError: the storage needs a GPU, and there is no usable one.
        MemoryError: the memory can't be had; nothing was allocated.
    """

    __slots__ = ("_lead", "_window")

    _lead: _Lead | None  # None until the first integer index
    _window: Window | None  # None for a view

    def __init__(
        self,
        batch_shape: Sequence[int],
        dtype: DTypeLike,
        *,
        feature_shape: Sequence[int] = (),
        storage: str | Memory = "local",
        padding: int = 0,
        full_size: int | None = None,
    ) -> None:
        spec = ArraySpec.of(batch_shape, dtype, feature_shape, padding, full_size)
        buffer = Buffer.allocate(storage, spec.extents, spec.dtype, len(spec.batch_shape))
        window = spec.window()
        self._assemble(buffer, (window.rows, *map(range, spec.extents[1:])), window)

    def _assemble(self, buffer: Buffer, location: Location, window: Window | None) -> None:
        self._buffer = buffer
        self._location = location
        self._window = window
        self._data = None
        self._lead = None

    @classmethod
    def from_spec(cls, spec: ArraySpec, storage: str | Memory = "local") -> Array:
        """Allocate an Array that looks like a spec, of the kind that the spec is of.

        Args:
            spec: shape, dtype and window of the Array.
            storage: kind of memory, or a block of it to be placed in.
        """
        if isinstance(spec, KindSpec):
            return spec.make(storage)
        return Array(
            spec.batch_shape,
            spec.dtype,
            feature_shape=spec.feature_shape,
            storage=storage,
            padding=spec.padding,
            full_size=spec.full_size,
        )

    @classmethod
    def from_numpy(
        cls,
        example: ArrayLike,
        *,
        batch_shape: Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        storage: str | Memory = "local",
        padding: int = 0,
        full_size: int | None = None,
        force_32bit: bool = True,
    ) -> Array:
        """Make an Array after an example.

        Args:
            example: anything that NumPy or DLPack takes.
            batch_shape: given, the Array is zero and holds rows like the example. Left out, it is
                a copy of the example, whose first dimension is the leading one.
            dtype: of the elements; the example's by default.
            storage, padding, full_size: as for `Array`.
            force_32bit: with no dtype given, halve 64-bit integers, floats and complex numbers.
        """
        values = np.asarray(to_host(example))
        if dtype is None:
            dtype = narrow(values.dtype) if force_32bit else values.dtype
        array = Array(
            values.shape if batch_shape is None else batch_shape,
            dtype,
            feature_shape=() if batch_shape is None else values.shape,
            storage=storage,
            padding=padding,
            full_size=full_size,
        )
        if batch_shape is None:
            array[...] = values
        return array

    @classmethod
    def from_dlpack(cls, source: Any, *, n_batch_dims: int | None = None) -> Array:
        """Return a view of host memory that another library owns. Nothing is copied.

        Args:
            source: anything with `__dlpack__`, e.g. a torch tensor or a NumPy array.
            n_batch_dims: leading dimensions that are batch dimensions; all by default.

        Raises:
            BufferError: the memory is not the host's, or NumPy has no such dtype.
        """
        data = np.from_dlpack(source)
        return _view_of(data, data.ndim if n_batch_dims is None else n_batch_dims)

    @property
    def spec(self) -> ArraySpec:
        """What this Array looks like; of a view, without a window of its own."""
        return ArraySpec(
            self.batch_shape, self.dtype, self.feature_shape, self.padding, self.full_size
        )

    def new_array(
        self,
        *,
        batch_shape: Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        feature_shape: Sequence[int] | None = None,
        storage: str | Memory | None = None,
        padding: int | None = None,
        full_size: int | None = None,
    ) -> Array:
        """Return a new, zeroed Array that differs from this one in what is given.

        Of a view, the visible shape counts; it has neither padding nor a larger `full_size`. With
        another T and no `full_size`, the new Array has a ring of T rows.
        """
        spec = self.spec.changed(
            batch_shape=batch_shape,
            dtype=dtype,
            feature_shape=feature_shape,
            padding=padding,
            full_size=full_size,
        )
        return Array.from_spec(spec, self.storage if storage is None else storage)

    # Indexing, and writing at an index

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

    def row_parts(self, *, checked: bool = False) -> dict[str, Array]:
        """Return views of the parts that `row_writer` writes, by their names; here there are none.

        Args:
            checked: whether the parts that are only read, to compare with, are among them.
        """
        return {}

    def write_history(self, index: Any, values: Any) -> None:
        """Write samples that no row before leads to, as those of an episode under way.

        For this kind of Array that is a write like any other.

        Args:
            index: the rows of one time step, as for reading.
            values: what broadcasts to the rows' shape, of any library.
        """
        self[index] = values

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
        return ValueError(f"writing {describe(value)} into {self._describe()}: {error}")

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

    def _view(self, location: Location, data: NDArray[Any] | None = None) -> Array:
        return ArrayView(self._buffer, location, data)

    def __iter__(self) -> Iterator[Array]:
        return (self[row] for row in range(len(self)))

    # The window

    @property
    def padding(self) -> int:
        """Rows kept before and after the window; 0 for a view."""
        return 0 if self._window is None else self._window.padding

    @property
    def full_size(self) -> int:
        """Rows of the ring; for a view the number of its rows, 0 where it has no dimension."""
        return self._window.full_size if self._window is not None else (*self.shape, 0)[0]

    @property
    def window_begin(self) -> int:
        """Row of the ring at which the window begins, from 0 to `full_size - T`.

        Raises:
            TypeError: this is a view.
        """
        window = self._own_window("window_begin")
        return window.rows.start - window.ring.start

    def rotate(self) -> None:
        """Move the window forward by its own length, so that the next batch can be written.

        Behind the end of the ring it begins again, and the `2 * padding` rows around the end are
        copied to the beginning; otherwise no byte moves. Views that were taken before stay put.
        In device memory the copy is queued in the caller's current stream.

        Raises:
            TypeError: this is a view.
        """
        moves = self.advance_window()
        with self._buffer.in_order():
            for destination, source in moves:
                destination[...] = source

    def advance_window(self) -> list[tuple[Any, Any]]:  # Any: arrays of NumPy or CuPy
        """Move the window as `rotate` does, and return what is left to be done for that.

        Returns:
            The rows at the beginning and those to be copied there, C-contiguous and of the same
            shape, for each part of the memory; empty where no byte moves. In device memory, rows
            that overlap those were copied in the caller's current stream; copy on in that one.

        Raises:
            TypeError: this is a view.
        """
        window = self._own_window("rotate")
        has_wrapped = window.advance()
        self._assemble(self._buffer, (window.rows, *self._location[1:]), window)
        return self._buffer.moves_around_end(window) if has_wrapped else []

    def reset(self) -> None:
        """Make the next `rotate` land at the beginning of the ring. No byte moves.

        Raises:
            TypeError: this is a view.
        """
        window = self._own_window("reset")
        window.reset()
        self._assemble(self._buffer, (window.rows, *self._location[1:]), window)

    def move_window(self, window_begin: int) -> None:
        """Put the window where it was before, as in a ring that was saved. No byte moves.

        Args:
            window_begin: row of the ring, as the property gives it.

        Raises:
            TypeError: this is a view.
            ValueError: no window of the ring begins there.
        """
        window = self._own_window("move_window")
        window.move(window_begin)
        self._assemble(self._buffer, (window.rows, *self._location[1:]), window)

    def _own_window(self, what: str) -> Window:
        if self._window is None:
            raise TypeError(
                f"{what}: this Array is a view, and only the Array that was allocated has a window"
            )
        self._buffer.check_open()
        return self._window

    @property
    def full(self) -> Array:
        """A view of the whole ring, without the padding. It stays put when the window moves."""
        window = self._own_window("full")
        return self._view((window.ring, *self._location[1:]))

    @property
    def next(self) -> Array:
        """A view of the rows one step later in time.

        Raises:
            IndexError: they lie outside the base buffer; more padding makes room.
        """
        self._buffer.check_open()
        return self._view(shift(self._location, self._buffer.extents, 1))

    @property
    def previous(self) -> Array:
        """A view of the rows one step earlier in time.

        Raises:
            IndexError: they lie outside the base buffer; more padding makes room.
        """
        self._buffer.check_open()
        return self._view(shift(self._location, self._buffer.extents, -1))

    # Life

    def close(self) -> None:
        """Give the memory back. Called again, it does nothing.

        Reading, writing and rotating a closed Array, and taking views of it, raise ValueError.

        The other Arrays of the same block keep it until they close too. NumPy arrays and tensors
        that were taken before stay valid, and keep the memory until they go. Device memory goes
        back in the order of the stream that allocated it: work in others must be done. Closing
        pinned memory waits for the caller's current stream, managed memory for the device.
        """
        self._data = self._lead = None
        self._buffer.close()

    def to(self, storage: str | Memory) -> Array:
        """Return a copy of this Array in memory of another kind, with its ring and its padding.

        Of a view, what it shows is copied. From device memory to the host's, the host waits for
        the caller's current stream; from managed and pinned memory it takes what is there, so wait
        for streams that write it before. Into device memory, the copy is queued in that stream,
        behind what it does to device and managed memory; from pinned memory it reads what is there
        when the stream gets there.
        """
        if not self.batch_shape:  # no Array is allocated without one
            other = Array((1,), self.dtype, feature_shape=self.shape, storage=storage)[0]
            other[...] = self
            return other
        other = Array.from_spec(self.spec, storage)
        if self._window is None:
            other[...] = self
            return other
        other._buffer.copy_from(self._buffer)
        other._assemble(other._buffer, self._location, copy.copy(self._window))
        return other

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> tuple[Buffer, Location, Window | None]:
        return self._buffer, self._location, self._window

    def __setstate__(self, state: tuple[Buffer, Location, Window | None]) -> None:
        self._assemble(*state)

    def __copy__(self) -> Array:
        return self[...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Array:
        return self.to(self.storage)


class ArrayView(Array):
    """A part of an Array at a place that never changes; reads and writes go to the Array.

    Args:
        buffer: of the Array.
        location: the part of it.
        data: the same part as a NumPy array, where the caller has it.
    """

    __slots__ = ()

    def __init__(
        self, buffer: Buffer, location: Location, data: NDArray[Any] | None = None
    ) -> None:
        self._buffer = buffer
        self._location = location
        self._window = None
        self._data = data
        self._lead = None

    def close(self) -> None:
        """Close this view only. The memory stays with the Array that it is a part of."""
        self._data = self._lead = None
        if not self._buffer.is_closed:
            self._buffer = self._buffer.closed()

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._buffer.is_private:  # no memory to be sent: the values are
            return _copy_of, (np.array(self), self.dtype, self.n_batch_dims)
        return super().__reduce_ex__(protocol)


class KindSpec(ArraySpec, ABC):
    """What an Array of another kind than the plain one looks like; it makes such Arrays itself.

    A kind of Array is a subclass of each, of `Array` and of this one. Nothing else has to know it.
    """

    @abstractmethod
    def make(self, storage: str | Memory) -> Array:
        """Allocate an Array that looks like this, in memory of a kind or in a block of it."""


def _copy_of(data: NDArray[Any], dtype: np.dtype[Any], n_batch_dims: int) -> Array:
    return _view_of(data.astype(dtype, copy=False), n_batch_dims)


def _view_of(data: NDArray[Any], n_batch_dims: int) -> Array:
    buffer = Buffer(allocate("local", 0), data, n_batch_dims)
    return ArrayView(buffer, tuple(map(range, data.shape)))
