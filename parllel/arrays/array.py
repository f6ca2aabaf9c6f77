"""Array: rows of samples in memory of any kind, seen through a window; and its views."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from parllel import cuda
from parllel.arrays.array_spec import ArraySpec
from parllel.arrays.buffer import Buffer, copy_of
from parllel.arrays.dlpack import SupportsDLPack
from parllel.arrays.interop import apart_from, describe, narrow, put_on_device, to_host
from parllel.arrays.location import Index, Location, is_gathered, keys, locate, locate_slice, shift
from parllel.arrays.readable import Readable
from parllel.arrays.window import Window
from parllel.cuda import AnyArray
from parllel.storages import Memory, allocate

# What an integer index needs, found once for each Array, so that `array[t]` and `array[t, b]` do no
# more than add and compare (bench/bench_index.py): the rows that the index can reach, with the
# later axes applied to them; start, step and number of these rows; the number of columns; and the
# parts of the location before and after the indexed axis.
_Lead = tuple[NDArray[Any], int, int, int, int, Location, Location]


class Array(Readable):
    """An array of samples in memory of any kind; all elements are zero at first.

    >>> array = Array((3, 2), "float32", padding=1)
    >>> array[0] = 1
    >>> array[array.last + 1, 1] = 5  # the row of padding after the last one
    >>> array.rotate()  # the next batch: the row after the last one is now row 0
    >>> array[0].to_ndarray()
    array([0., 5.], dtype=float32)
    >>> array.close()

    An Array shows a window of T rows. Memory may hold more rows than that: `padding` rows before
    and after the window, and a ring of `full_size` rows that the window moves through.

    Indices work as in NumPy, with one difference: a negative index means a row before the
    beginning. With padding, `array[-1]` is the row before the first one, and
    `array[array.last + 1]` the row after the last one. Indexing returns a view, with integer
    arrays and masks too: writing into the view writes into this Array.

    In device memory, writing and rotating are work in the caller's current stream. They return at
    once, and work in another stream must wait for them (`cuda.Event`). A value in pinned or
    managed memory is read when the stream gets to the write, and must not change before; any other
    value in host memory is taken before the write returns. No operation waits for the whole
    device.

    Args:
        batch_shape: leading dimensions, usually (T, B): steps and environments.
        dtype: type of the elements, any NumPy dtype but object.
        feature_shape: trailing dimensions, the shape of one sample.
        storage: kind of memory ("local", "shared", "inherited", "pinned", "managed", "device"), or
            a block of memory that has room for the Array.
        padding: number of rows before and after the window, at most T. `rotate` keeps them.
        full_size: number of rows of the ring, a multiple of T; T by default.

    Raises:
        TypeError: dtype is object, or memory of this kind can't hold it.
        ValueError: padding is larger than T, full_size is no multiple of T, or storage is unknown.
        CudaUnavailableError: the storage needs a GPU, and there is no usable one.
        MemoryError: there is not enough memory; nothing was allocated.
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
        """Allocate an Array as a spec describes it, of the spec's own kind.

        Args:
            spec: kind, shape, dtype and window of the Array.
            storage: kind of memory, or a block of memory that has room for the Array.
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
        """Make an Array that fits an example.

        Args:
            example: an array of any library, a tensor, a list or a number.
            batch_shape: leading dimensions of a zeroed Array whose samples look like the example.
                By default, the Array is a copy of the example, all of whose dimensions are batch
                dimensions.
            dtype: type of the elements; the example's type by default.
            storage, padding, full_size: as for `Array`.
            force_32bit: whether 64-bit integers, floats and complex numbers become numbers of half
                the size; a dtype that is given counts more.
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
    def from_dlpack(cls, source: SupportsDLPack, *, n_batch_dims: int | None = None) -> Array:
        """Return a view of host memory that another library owns, without a copy.

        Args:
            source: an object with `__dlpack__`, such as a torch tensor or a NumPy array.
            n_batch_dims: number of leading dimensions that are batch dimensions; all by default.

        Raises:
            BufferError: the memory is not the host's, or NumPy has no such dtype.
        """
        data = np.from_dlpack(source)
        return _view_of(data, data.ndim if n_batch_dims is None else n_batch_dims)

    @property
    def spec(self) -> ArraySpec:
        """Kind, shape, dtype and window of this Array; a view is described as a plain Array."""
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
        """Return a new, zeroed Array like this one, but for the arguments that are given.

        With another T and no `full_size`, the new Array has a ring of T rows. For a view, the new
        Array has the view's visible shape, no padding and a ring of T rows.

        Args:
            batch_shape, dtype, feature_shape, storage, padding, full_size: as for `Array`.
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

    # Any: an `Index`, told apart by its class, which mypy does not follow.

    def __getitem__(self, index: Any) -> Array:
        lead = self._lead
        if lead is None or self._buffer.is_closed:
            lead = self._find_lead()
        rows, start, step, n_rows, n_columns, head, tail = lead
        if index.__class__ is int:
            row = start + index * step
            if 0 <= row < n_rows:
                return self._view((*head, row, *tail), rows[row, ...])
        elif index.__class__ is slice and n_rows and not head:  # so the first axis is a range
            return self._view((locate_slice(self._location[0], n_rows, index), *tail))  # type: ignore[arg-type]
        elif index.__class__ is tuple and len(index) == 2:
            t, b = index
            if t.__class__ is int and b.__class__ is int:
                row = start + t * step
                if 0 <= row < n_rows and 0 <= b < n_columns:
                    around = (*head, row, tail[0][b], *tail[1:])  # type: ignore[index]  # a range
                    return self._view(around, rows[row, b, ...])
        return self._view(locate(self._location, self._buffer.extents, index))

    def __setitem__(self, index: Any, value: object) -> None:
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
        """Return views of the parts that `row_writer` writes, by name; a plain Array has none.

        Args:
            checked: whether to add the parts that a writer only reads, to check samples.
        """
        return {}

    def write_history(self, index: Index, values: object) -> None:
        """Write samples that do not continue the row before, as in the middle of an episode.

        In a plain Array, this is a write like any other.

        Args:
            index: index of the rows of one time step.
            values: samples that broadcast to the shape of these rows, of any library.
        """
        self[index] = values

    def _write_on_device(self, index: Index, value: object) -> None:
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

    def _explain(self, error: ValueError, value: object) -> ValueError:
        return ValueError(f"writing {describe(value)} into {self._describe()}: {error}")

    def _find_lead(self) -> _Lead:
        """Find what an integer index needs; no rows, where integers can't be looked up this way."""
        location, extents = self._location, self._buffer.extents
        place = next((n for n, axis in enumerate(location) if not isinstance(axis, int)), None)
        # Frames of stacks, and slots of elements, are no rows.
        if place is None or is_gathered(location) or self._buffer.data.shape != extents:
            self._lead = (self._buffer.data, 0, 0, 0, 0, (), ())
            return self._lead
        axis, head, tail = location[place], location[:place], location[place + 1 :]
        assert isinstance(axis, range)
        rows = self._buffer.data[keys((*head, range(extents[place]), *tail))[0]]
        n_columns = rows.shape[1] if tail and isinstance(tail[0], range) else 0
        self._lead = (rows, axis.start, axis.step, extents[place], n_columns, head, tail)
        return self._lead

    def _write(self, location: Location, value: object) -> None:
        first, second = keys(location)
        if second:
            self._buffer.data[first][second] = value
        elif location is self._location:
            self._elements()[...] = value  # _elements keeps the array for the next write
        else:
            self._buffer.data[first] = value

    def _view(self, location: Location, data: NDArray[Any] | None = None) -> Array:
        return ArrayView(self._buffer, location, data)

    def __iter__(self) -> Iterator[Array]:
        return (self[row] for row in range(len(self)))

    # The window

    @property
    def padding(self) -> int:
        """Number of rows before and after the window; 0 for a view."""
        return 0 if self._window is None else self._window.padding

    @property
    def full_size(self) -> int:
        """Number of rows of the ring; for a view its own rows, 0 where it has no dimension."""
        return self._window.full_size if self._window is not None else (*self.shape, 0)[0]

    @property
    def window_begin(self) -> int:
        """The row of the ring where the window begins, from 0 to `full_size - T`.

        Raises:
            TypeError: this is a view.
        """
        window = self._own_window("window_begin")
        return window.rows.start - window.ring.start

    def rotate(self) -> None:
        """Move the window forward by its own length, so that the next batch can be written.

        After the end of the ring, the window starts again at row 0, and the `2 * padding` rows
        around the end are copied to the rows around the beginning. Otherwise no byte moves. Views
        that were taken before the call keep showing the same rows. In device memory, the copy is
        queued in the caller's current stream.

        Raises:
            TypeError: this is a view.
        """
        if not self.is_on_host:
            cuda.refuse_capture("a rotation")  # the host moves the window, a graph would not
        moves = self.advance_window()
        with self._buffer.in_order():
            for destination, source in moves:
                destination[...] = source

    def advance_window(self) -> list[tuple[AnyArray, AnyArray]]:
        """Move the window as `rotate` does, but leave the copy of rows to the caller.

        Returns:
            For each part of the memory a destination and a source, C-contiguous and of the same
            shape; nothing where no byte has to move. In device memory, a source that would overlap
            its destination is a copy, made in the caller's current stream; so copy in that stream.

        Raises:
            TypeError: this is a view.
        """
        window = self._own_window("rotate")
        has_wrapped = window.advance()
        if window.full_size > window.length:  # of one window, all that is known of it stays true
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
        """Put the window at a given row, as in a ring that was saved. No byte moves.

        Args:
            window_begin: the row of the ring where the window shall begin, a multiple of T.

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
        """A view of the whole ring without the padding, which does not move with the window."""
        window = self._own_window("full")
        return self._view((window.ring, *self._location[1:]))

    @property
    def next(self) -> Array:
        """A view of the rows one step later in time.

        Raises:
            IndexError: a row lies outside the memory; more padding makes room.
        """
        self._buffer.check_open()
        return self._view(shift(self._location, self._buffer.extents, 1))

    @property
    def previous(self) -> Array:
        """A view of the rows one step earlier in time.

        Raises:
            IndexError: a row lies outside the memory; more padding makes room.
        """
        self._buffer.check_open()
        return self._view(shift(self._location, self._buffer.extents, -1))

    # Life

    def close(self) -> None:
        """Give the memory back. A second call does nothing.

        A closed Array raises ValueError when it is read, written, rotated or indexed.

        A block of memory is given back when all Arrays in it are closed. NumPy arrays and tensors
        over the memory stay valid, and keep it until they are deleted. Device memory is given back
        in the order of the stream that allocated it: work in other streams must be done before.
        Closing pinned memory waits for the caller's current stream, and closing managed memory
        waits for the device.
        """
        self._data = self._lead = None
        self._buffer.close()

    def to(self, storage: str | Memory) -> Array:
        """Return a copy of this Array in memory of another kind, with its ring and its padding.

        The copy of a view has the rows that the view shows. A copy from device memory to host
        memory waits for the caller's current stream. A copy from managed or pinned memory to host
        memory waits for nothing: wait for the streams that write the source before. A copy to
        device memory is queued in the caller's current stream; it reads a source in managed or
        pinned memory when the stream gets to it.

        Args:
            storage: kind of memory, or a block of memory that has room for the copy.
        """
        if not self.batch_shape:  # an element: no Array can be allocated without a batch dimension
            other = Array.from_spec(self.spec.rows_spec(1), storage)[0]
        else:
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
    """A part of an Array, always of the same rows; reads and writes go to the Array's memory.

    >>> array = Array((3, 2), "int32")
    >>> view = array[1]
    >>> view[0] = 7
    >>> array.to_ndarray().tolist()
    [[0, 0], [7, 0], [0, 0]]

    Args:
        buffer: memory of the Array.
        location: the part of the memory that the view shows.
        data: the same part as a NumPy array, where the caller has it already.
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
        """Close this view only; the Array that it is a part of keeps the memory."""
        self._data = self._lead = None
        if not self._buffer.is_closed:
            self._buffer = self._buffer.closed()

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:  # Any: as pickle has it
        if self._buffer.is_private:  # the memory can't be sent, so its values are
            return _copy_of, (np.array(self), self.dtype, self.n_batch_dims, self.storage)
        return super().__reduce_ex__(protocol)


class KindSpec(ArraySpec, ABC):
    """The spec of a kind of Array that is not plain; it can make such an Array.

    A new kind is a subclass of `Array` and a subclass of this class. No other code has to know
    them (tests/summed_array.py shows one). These are the questions that a kind answers in its own
    way; a plain Array's answers are inherited:

    - the Array: `spec`, `row_source`, `row_writer`, `row_parts`, `n_older_steps`, `write_history`,
      `check_values`;
    - the spec: `make`, `kind`, `shape`, `extents`, `nbytes`, `rows_spec`, `row_of`, `holds`;
    - the buffer, where a kind has memory beside the rows: `parts`, `copy_from`, `moves_around_end`,
      `make_room`.

    A plain Array's answers presume rows without gaps, one after the other in memory. A kind whose
    rows lie otherwise has to answer `row_source` itself: the inherited one would be a copy, which
    a replay buffer refuses.

    >>> from parllel.arrays import FrameSpec
    >>> issubclass(FrameSpec, KindSpec)
    True
    """

    @abstractmethod
    def make(self, storage: str | Memory) -> Array:
        """Allocate an Array as this spec describes it.

        Args:
            storage: kind of memory, or a block of memory that has room for the Array.
        """


def _copy_of(data: NDArray[Any], dtype: np.dtype[Any], n_batch_dims: int, kind: str) -> Array:
    return ArrayView(copy_of(data, dtype, n_batch_dims, kind), tuple(map(range, data.shape)))


def _view_of(data: NDArray[Any], n_batch_dims: int) -> Array:
    buffer = Buffer(allocate("local", 0), data, n_batch_dims)
    return ArrayView(buffer, tuple(map(range, data.shape)))
