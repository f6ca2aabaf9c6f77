"""Readable: what an Array tells about itself, and how its elements are read out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from parllel import cuda
from parllel.arrays.buffer import Buffer
from parllel.arrays.dlpack import Capsule, DLDevice, export
from parllel.arrays.interop import flat_rows, to_tensor
from parllel.arrays.location import Location, count_dims, is_gathered, keys, rows_of, shape_of
from parllel.arrays.row_writer import RowWriter
from parllel.cuda import AnyArray
from parllel.ops.stack_gather import RowSource
from parllel.storages import Memory, Side

if TYPE_CHECKING:
    import torch


class PickedRows(NamedTuple):
    """Whole rows of a base buffer that integer arrays pick.

    Args:
        rows: of NumPy or CuPy, [m, ...]. All rows of the buffer.
        numbers: intp [n]. Which of them.
    """

    rows: Any
    numbers: NDArray[np.intp]


class Readable:
    """The elements of a buffer at a location, for reading."""

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
        """Bytes of the whole base buffer: ring and padding."""
        return math.prod(self._buffer.extents) * self.dtype.itemsize

    @property
    def memory_parts(self) -> dict[str, AnyArray]:
        """All of the base buffer, ring and padding: arrays over its parts of memory, by name."""
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
        """Which side works on the rows: "gpu" for `device` and `managed`, "host" for all others."""
        return self._buffer.side

    @property
    def is_on_host(self) -> bool:
        """Whether the host can read and write the memory: all but `device`."""
        return self._buffer.is_on_host

    @property
    def is_for_gpu(self) -> bool:
        """Whether a GPU can use the memory: `device`, `managed` and `pinned`."""
        memory = self._buffer.memory
        return memory is not None and memory.is_for_gpu

    @property
    def is_gathered(self) -> bool:
        """Whether integer arrays or a mask made this view, so that reading it gathers a copy."""
        return is_gathered(self._location)

    @property
    def memory(self) -> Memory:
        """The block of memory that the base buffer was placed in.

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

        It is a copy, read-only, so that a write that would be lost raises, of a view made with
        integer arrays or a mask, and of device memory: there it is made in the caller's current
        stream, and the host waits for that stream.

        Of pinned and managed memory it waits for nothing: before you touch what a stream writes
        or reads there, wait for that stream, or for an event behind that work.

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

    def to_cupy(self) -> Any:  # Any: cupy.ndarray
        """Return the visible elements as a CuPy array over the same memory.

        Waits for nothing. Of a view made with integer arrays or a mask it is a copy, gathered in
        the caller's current stream; work in another one must wait for it (`cuda.Event`). Of
        pinned and managed memory, the caller keeps host and streams apart.

        Raises:
            TypeError: no GPU can use memory of this kind.
            ValueError: the Array was closed.
        """
        if not self._buffer.is_on_host:
            return self._elements()
        return self._pick(self._buffer.device_data())

    def to_torch(self) -> torch.Tensor:
        """Return the visible elements as a torch tensor over the same memory.

        Device memory (by DLPack) and managed memory (by the CUDA array interface: torch refuses it
        by DLPack) give a CUDA tensor, other memory one of the CPU. A tensor over pinned memory
        is pinned for torch in the process that owns the memory: `tensor.is_pinned()` asks CUDA
        what kind of memory is at the tensor's address, whoever locked it. So
        `tensor.to("cuda", non_blocking=True)` is asynchronous, and the memory must stay as it is
        until that copy is done.

        Of a view made with integer arrays or a mask it is a gathered copy. Waits for nothing:
        torch's work in its current stream comes behind what the Array's own work queued in the
        caller's, which is the same one as soon as torch uses CUDA.

        Raises:
            CudaUnavailableError: the memory is CUDA's, and torch can use no device; its build may
                be for CPUs.
            TypeError: torch has no such dtype.
            ValueError: the view has a negative step, which torch does not know; or the Array was
                closed.
        """
        if self._buffer.side == "host":
            return to_tensor(self._elements())
        return cuda.tensor_over(self.to_cupy())

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

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: DLDevice | None = None,
        copy: bool | None = None,
    ) -> Capsule:
        """Return the visible elements as a DLPack capsule over the same memory.

        Strides go out as they are: those of a view, and negative ones too. NumPy and CuPy take
        them; `torch.from_dlpack` of torch 2.13 ends the process (pytorch issue 188023), where
        `to_torch` raises.

        Of a view made with integer arrays or a mask, and of device memory that is asked for on
        the host, it is a copy: read-only, so that a write that would be lost raises, unless
        `copy=True` asks for a copy.

        Args:
            stream: of the receiver, for device and managed memory: it is made to wait for the
                caller's current one, and the host is not. None and 1 are the legacy default
                stream, 2 is the per-thread default stream, -1 asks for no order, any other number
                is a stream's address. For memory of the host: None.
            max_version: newest DLPack that the receiver knows; with (1, 0) or newer it gets a
                capsule of DLPack 1, which can say read-only and copied.
            dl_device: where the receiver wants the elements: as `__dlpack_device__` says, or
                (1, 0) for the host. There the host waits for the caller's current stream.
            copy: True: always copy, False: never, None: where it is necessary. Device memory is
                copied in the receiver's stream, and the caller's waits for that.

        Raises:
            BufferError: the dtype or the device can't be handed out; a copy is necessary and
                `copy` is False (also a ValueError); or it is read-only, and `max_version` too old
                to say so.
            TypeError: an argument is of the wrong kind.
            ValueError: the stream is not one; memory of the host has none; the Array was closed.
        """
        return export(self, stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's device type and number.

        (2, number) for device memory, (13, number) for managed memory, (1, 0) for all other: also
        pinned memory is the host's, as what DLPack has for it (3) is refused by most.
        """
        buffer = self._buffer
        data = buffer.on_side(buffer.side)
        kind, number = data.__dlpack_device__()
        return int(kind), int(number)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The CUDA array interface, version 3, of memory that a GPU can use.

        Its stream is the caller's current one: work of the receiver in another stream, or on the
        host, must wait for it. CuPy and Numba make the host wait.

        Raises:
            AttributeError: no GPU can use the memory; or integer arrays or a mask made the view,
                whose gathered copy nobody would keep.
        """
        if self.is_gathered:
            raise AttributeError(
                "__cuda_array_interface__: a view made with integer arrays or a mask is gathered"
                " when it is read, and nobody would keep the copy; use to_cupy() or to_torch()"
            )
        try:
            return cuda.array_interface(self.to_cupy())
        except TypeError as error:  # so that hasattr tells what a GPU can use
            raise AttributeError(str(error)) from error

    def picked_rows(self) -> PickedRows | None:
        """Return the rows that a view made with integer arrays shows; None for any other view.

        The arrays are on the leading axes, all others are shown whole, and rows follow each other
        in memory without gaps.
        """
        found, data = rows_of(self._location, self._buffer.extents), self._buffer.data
        if found is None or not data.flags.c_contiguous:
            return None
        n_axes, numbers = found
        n_rows = math.prod(data.shape[:n_axes])
        return PickedRows(data.reshape(n_rows, *data.shape[n_axes:]), numbers)

    @property
    def n_older_steps(self) -> int:
        """How many steps before a row are a part of its sample; 0 for this kind of Array."""
        return 0

    def row_source(self, side: Side) -> RowSource:
        """Return the rows of this view as a gather reads them: its first two axes taken together.

        The memory is this Array's own, and what is written later is gathered then; but a copy
        where the rows do not follow each other in memory.

        Args:
            side: where the rows are gathered, "host" or "gpu".

        Raises:
            TypeError: that side can't use the memory.
        """
        return RowSource(flat_rows(self._pick(self._buffer.on_side(side))))

    @property
    def row_writer(self) -> RowWriter | None:
        """How environments write the rows where a row is stored in several parts (`row_parts`).

        None is the answer of this kind of Array: environments write the rows as they are.
        """
        return None

    def _elements(self) -> NDArray[Any]:
        """Return the visible elements as the memory's own kind of array."""
        data = self._data
        if data is None or self._buffer.is_closed:
            data = self._pick(self._buffer.data)
            if not is_gathered(self._location):
                self._data = data
        return data

    def _pick(self, data: Any) -> Any:  # Any: an array of NumPy or CuPy
        first, second = keys(self._location)
        if not second:
            return data[first]
        if isinstance(data, np.ndarray):
            return data[first][second]
        with cuda.use_stream():  # a gather is work
            return data[first][second]

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
