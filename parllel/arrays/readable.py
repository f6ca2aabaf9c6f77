"""Readable: the half of an Array that reads; a file of its own, since one would be too long."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from parllel import cuda
from parllel.arrays.array_spec import ArraySpec
from parllel.arrays.buffer import Buffer
from parllel.arrays.dlpack import Capsule, DLDevice, export
from parllel.arrays.interop import flat_rows, to_tensor
from parllel.arrays.location import Location, count_dims, is_gathered, keys, rows_of, shape_of
from parllel.arrays.row_writer import RowWriter
from parllel.cuda import AnyArray, DeviceArray
from parllel.ops.sides import contiguous
from parllel.ops.stack_gather import RowSource
from parllel.storages import Memory, Side

if TYPE_CHECKING:
    import torch

_NDARRAY: NDArray[Any] = np.empty(0)


class PickedRows(NamedTuple):
    """Whole rows of an Array's memory that integer arrays pick.

    Args:
        rows: [m, ...], all rows of the memory, in NumPy's or CuPy's array; or their frames.
        numbers: intp [n], the numbers of the rows that are picked.
    """

    rows: AnyArray | RowSource
    numbers: NDArray[np.intp]


class Place(NamedTuple):
    """The elements of a buffer that an Array shows.

    Args:
        buffer: the memory, whichever Arrays show it.
        location: the part that is shown, without integer arrays.
    """

    buffer: Buffer
    location: Location


def are_at(arrays: Sequence[Readable], places: Sequence[Place]) -> bool:
    """Whether each Array lies at the place of the same number (`Readable.is_at`), and none more."""
    if len(arrays) != len(places):
        return False
    for array, place in zip(arrays, places):  # noqa: B905  # compared above
        buffer, location = place
        is_same = array._buffer is buffer and array._location is location  # quickly told
        if buffer.is_closed or not (is_same or array.is_at(place)):
            return False
    return True


class Readable:
    """The properties of an Array, and the ways to read its elements.

    >>> from parllel import Array
    >>> array = Array((3, 2), "float32", feature_shape=(4,))
    >>> array.shape, array.batch_shape, array.side, array.n_older_steps
    ((3, 2, 4), (3, 2), 'host', 0)
    """

    __slots__ = ("__weakref__", "_buffer", "_data", "_location")

    _buffer: Buffer
    _location: Location
    _data: NDArray[Any] | None  # the elements, where they were looked up already

    @property
    def shape(self) -> tuple[int, ...]:
        """Visible shape: `batch_shape + feature_shape`."""
        return self._data.shape if self._data is not None else shape_of(self._location)

    @property
    def ndim(self) -> int:
        """Number of visible dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of visible elements."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self._buffer.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the visible elements."""
        return self.size * self.dtype.itemsize

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of all rows, those of the ring and the padding included."""
        return math.prod(self._buffer.extents) * self.dtype.itemsize

    @property
    def memory_parts(self) -> dict[str, AnyArray]:
        """All rows, ring and padding included: an array over each part of the memory, by name."""
        return self._buffer.parts

    @property
    def n_batch_dims(self) -> int:
        """Number of leading dimensions that are batch dimensions."""
        return count_dims(self._location, self._buffer.n_batch_axes)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions, usually (T, B)."""
        return self.shape[: self.n_batch_dims]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Trailing dimensions, of one sample."""
        return self.shape[self.n_batch_dims :]

    @property
    def storage(self) -> str:
        """Kind of the memory, as given to the constructor."""
        return self._buffer.kind

    @property
    def side(self) -> Side:
        """The side that works on the rows: "gpu" for `device` and `managed`, "host" for others."""
        return self._buffer.side

    @property
    def is_on_host(self) -> bool:
        """Whether the host can read and write the memory, as it can all but `device`."""
        return self._buffer.is_on_host

    @property
    def is_for_gpu(self) -> bool:
        """Whether a GPU can read and write the memory: `device`, `managed` and `pinned`."""
        memory = self._buffer.memory
        return memory is not None and memory.is_for_gpu

    @property
    def is_gathered(self) -> bool:
        """Whether integer arrays or a mask made this view, so that reading it gathers a copy."""
        return is_gathered(self._location)

    @property
    def place(self) -> Place | None:
        """Where the elements lie, for what keeps an array over them (`is_at`).

        None where reading makes a copy, so that there is no array to keep, and of a closed Array.
        """
        buffer = self._buffer
        return None if self.is_gathered or buffer.is_closed else Place(buffer, self._location)

    def is_at(self, place: Place) -> bool:
        """Whether the elements lie at a place, in memory that is open: an array over it is theirs.

        Args:
            place: what `place` was of this Array or of another one.
        """
        buffer, location = place
        if self._buffer is not buffer or buffer.is_closed:
            return False
        own = self._location
        return own is location or (not self.is_gathered and own == location)

    @property
    def memory(self) -> Memory:
        """The block of memory that holds the rows.

        Raises:
            ValueError: the Array was closed.
        """
        self._buffer.check_open()
        assert self._buffer.memory is not None
        return self._buffer.memory

    @property
    def first(self) -> int:
        """Index of the first row: 0."""
        return 0

    @property
    def last(self) -> int:
        """Index of the last row. `array[array.last + 1]` is the first row of padding behind it."""
        return len(self) - 1

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an Array without dimensions")
        return self.shape[0]

    def to_ndarray(self) -> NDArray[Any]:
        """Return the visible elements as a NumPy array over the same memory.

        For device memory, and for a view made with integer arrays or a mask, the result is a
        copy. It is read-only, so that a write, which would be lost, raises. A copy of device
        memory is made in the caller's current stream, and the host waits for that stream.

        For pinned and managed memory, the call waits for nothing: before the host touches rows
        that a stream reads or writes, wait for that stream, or for an event after its work.

        Raises:
            ValueError: the Array was closed.
        """
        buffer = self._buffer
        if self._data is not None and buffer.is_on_host and not buffer.is_closed:
            return self._data[...]  # the caller may change the shape and flags of its own
        values = self._elements()
        if not buffer.is_on_host:
            values = cuda.to_host(values)
        elif not self.is_gathered:
            return values[...]
        values.flags.writeable = False
        return values

    def to_cupy(self) -> DeviceArray:
        """Return the visible elements as a CuPy array over the same memory.

        The call waits for nothing. For a view made with integer arrays or a mask, the result is a
        copy, gathered in the caller's current stream; work in another stream must wait for it
        (`cuda.Event`). In pinned and managed memory, the caller must see to it that the host and
        the streams do not use the same rows at the same time.

        Raises:
            TypeError: no GPU can use memory of this kind.
            ValueError: the Array was closed.
        """
        if not self._buffer.is_on_host:
            return self._elements()
        return self._pick(self._buffer.device_data())

    def to_torch(self) -> torch.Tensor:
        """Return the visible elements as a torch tensor over the same memory.

        Device and managed memory give a CUDA tensor, all other memory a CPU tensor. In the process
        that owns pinned memory, torch knows that the tensor is pinned, too (`is_pinned()`). So
        `tensor.to("cuda", non_blocking=True)` is asynchronous, and the memory must not change
        until that copy is done.

        For a view made with integer arrays or a mask, the tensor is a copy. The call waits for
        nothing: torch's current stream is the caller's current stream as soon as torch uses CUDA,
        so that torch's work comes after the Array's own work.

        Raises:
            CudaUnavailableError: the memory is CUDA's, and torch can use no device; it may be a
                build for CPUs.
            TypeError: torch does not have the dtype.
            ValueError: the view has a negative step, which torch does not have; or the Array was
                closed.
        """
        if self._buffer.side == "host":
            return to_tensor(self._elements())
        return cuda.tensor_over(self.to_cupy())

    def fixed_tensors(self) -> Any:  # Any: a tensor, or a Jagged
        """Return what `to_torch` returns, in a form whose shapes no later write changes."""
        return self.to_torch()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if not self._buffer.is_on_host:
            raise TypeError(
                "an Array in device memory is not converted implicitly: to_ndarray() copies it to"
                " the host, to_torch() and to_cupy() share it"
            )
        if copy is False and self.is_gathered:
            raise ValueError(
                "a view made with integer arrays or a mask can't be read without a copy"
            )
        return np.array(self.to_ndarray(), dtype=dtype, copy=copy)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        # NumPy's array_equal takes an error of a conversion for "not equal". That of device memory
        # has to be raised before, so that two equal Arrays are not told apart.
        if not self._buffer.is_on_host:
            self.__array__()
        others = [each for each in types if not issubclass(each, Readable)]
        return _NDARRAY.__array_function__(function, others, args, kwargs)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: DLDevice | None = None,
        copy: bool | None = None,
    ) -> Capsule:
        """Return the visible elements as a DLPack capsule over the same memory.

        For a view with a negative step, which `torch.from_dlpack` does not survive, for a view made
        with integer arrays or a mask, and for device memory that is wanted on the host, the capsule
        holds a copy. It is read-only, so that a write, which would be lost, raises; with
        `copy=True` it is writable.

        Args:
            stream: the receiver's stream, for device and managed memory. It waits for the caller's
                current stream; the host does not. None and 1 are the legacy default stream, 2 is
                the per-thread default stream, -1 asks for no order, any other number is the address
                of a stream. For host memory: None.
            max_version: the newest DLPack that the receiver knows. With (1, 0) or newer it gets a
                capsule of DLPack 1, which can say that the elements are read-only or a copy.
            dl_device: the device that the receiver wants the elements on: that of
                `__dlpack_device__`, or (1, 0) for the host, which waits for the caller's current
                stream then.
            copy: True for a copy always, False for never, None where a copy is necessary. Device
                memory is copied in the receiver's stream, and the caller's stream waits for that.

        Raises:
            BufferError: DLPack does not have the dtype or the device; or a copy is necessary and
                `copy` is False (this error is a ValueError, too); or the copy is read-only, and
                `max_version` is too old to say so.
            TypeError: an argument has the wrong type.
            ValueError: there is no such stream, or host memory was asked for with a stream, or the
                Array was closed.
        """
        return export(self, stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's device type and number.

        That is (2, number) for device memory, (13, number) for managed memory and (1, 0) for all
        other memory. DLPack has a type of its own for pinned memory (3), but most libraries refuse
        it.
        """
        buffer = self._buffer
        data = buffer.on_side(buffer.side)
        kind, number = data.__dlpack_device__()
        return int(kind), int(number)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The CUDA array interface, version 3, of memory that a GPU can use.

        It names the caller's current stream: the receiver's work in another stream, or on the host,
        must wait for that stream. CuPy and Numba make the host wait.

        Raises:
            AttributeError: no GPU can use the memory; or the view was made with integer arrays or a
                mask, and no object would keep the copy alive.
        """
        if self.is_gathered:
            raise AttributeError(
                "__cuda_array_interface__: a view made with integer arrays or a mask is gathered"
                " when it is read, and no object would keep the copy; use to_cupy() or to_torch()"
            )
        try:
            return cuda.array_interface(self.to_cupy())
        except TypeError as error:  # so that hasattr tells what a GPU can use
            raise AttributeError(str(error)) from error

    def picked_rows(self) -> PickedRows | None:
        """Return the rows that integer arrays picked for this view; None for any other view.

        None is returned as well where the arrays are not on the leading axes, where other axes are
        not shown whole, and where the memory has gaps between rows.
        """
        found, data = rows_of(self._location, self._buffer.extents), self._buffer.data
        if found is None or not data.flags.c_contiguous:
            return None
        n_axes, numbers = found
        n_rows = math.prod(data.shape[:n_axes])
        return PickedRows(data.reshape(n_rows, *data.shape[n_axes:]), numbers)

    @property
    def n_older_steps(self) -> int:
        """The number of steps before a row that belong to its sample, too; 0 for a plain Array."""
        return 0

    def row_source(self, side: Side, n_axes: int = 2) -> RowSource:
        """Return the rows of this view as the source of gathers, with T and B taken together.

        The source is this Array's own memory, so that a later gather reads what was written until
        then. Only where the rows do not follow each other in memory it is a copy, made now.

        Args:
            side: the side that gathers, "host" or "gpu".
            n_axes: number of axes that rows are counted over: 2, or 1 for a table of rows.

        Raises:
            TypeError: that side can't use the memory.
        """
        is_own = side == self._buffer.data_side  # whose elements are looked up once
        rows = self._elements() if is_own else self._pick(self._buffer.on_side(side))
        return RowSource(flat_rows(rows) if n_axes > 1 else contiguous(rows))

    def gather_output(self, side: Side) -> Any:  # Any: an array, or PackedRows
        """Return the memory of this Array as gathers write it: an array [n, ...].

        Args:
            side: the side that gathers, "host" or "gpu".
        """
        return self.to_cupy() if side == "gpu" else self.to_ndarray()

    def make_room(self, spec: ArraySpec) -> None:
        """Take what memory the rows of a spec need, which this Array's own spec `holds`."""
        self._buffer.make_room(spec.shape)

    @property
    def may_move(self) -> bool:
        """Whether a write may take new memory, so that sources of gathers would be out of date."""
        return False

    @property
    def row_writer(self) -> RowWriter | None:
        """The writer for environments, where a row is stored in several parts (`row_parts`).

        A plain Array has none: environments write its rows as they are.
        """
        return None

    def check_values(self, value: object) -> bool:
        """Raise what writing a value to all of this view would raise, and write nothing.

        A plain Array takes what NumPy takes, and does not look.

        Args:
            value: a value of any library.

        Returns:
            Whether this kind of Array has looked, by rules of its own.
        """
        return False

    def _elements(self) -> NDArray[Any]:
        """Return the visible elements as the memory's own kind of array."""
        data = self._data
        if data is None or self._buffer.is_closed:
            data = self._pick(self._buffer.data)
            if not is_gathered(self._location):
                self._data = data
        return data

    def _pick(self, data: AnyArray) -> AnyArray:
        first, second = keys(self._location)
        if not second:
            return data[first]
        if isinstance(data, np.ndarray):
            return data[first][second]
        cuda.check_current(data)
        with cuda.use_stream():  # a gather is work
            return data[first][second]

    def __eq__(self, other: object) -> bool:
        if other is None:  # no element is None: `iter(queue.get, None)` and `None in [...]` ask it
            return False
        raise TypeError(
            f"`==` between an Array and a {type(other).__name__}: Arrays take no part in arithmetic"
            " and comparisons; compare to_ndarray(), to_torch() or to_cupy(), or ask `is`"
        )

    __hash__ = object.__hash__  # of the object, not of its elements

    def item(self) -> Any:
        """Return the only element as a Python scalar."""
        return self.to_ndarray().item()

    def __bool__(self) -> bool:
        return bool(self.to_ndarray())

    def __int__(self) -> int:
        return int(self.to_ndarray())

    def __float__(self) -> float:
        return float(self.to_ndarray())

    def __repr__(self) -> str:
        if self._buffer.is_closed:
            return f"Array(closed, shape={self.shape}, dtype={self.dtype})"
        values = np.array2string(self.to_ndarray(), separator=", ", prefix="Array(")
        return f"Array({values}, dtype={self.dtype}, storage={self.storage!r})"

    def _describe(self) -> str:
        return f"an Array of shape {self.shape}, dtype {self.dtype}"
