"""Buffer: the rows of an Array and of all its views, in a block of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays.interop import PLAIN, put_on_device, to_device, to_host
from parllel.arrays.window import Window
from parllel.cuda import AnyArray, DeviceArray
from parllel.storages import KINDS, Memory, Side, aligned, allocate, nbytes_of

_NONE: frozenset[type] = frozenset()


class Buffer:
    """The base buffer: all rows that an Array and its views read and write.

    >>> import numpy as np
    >>> buffer = Buffer.allocate("local", (7, 2), np.dtype(np.float32), n_batch_axes=2)
    >>> buffer.data.shape, buffer.kind, buffer.side
    ((7, 2), 'local', 'host')

    Args:
        memory: the block that holds the rows; `close` releases it.
        data: the rows, ring and padding included, as an array of NumPy or CuPy.
        n_batch_axes: number of leading axes that are batch dimensions; all others are features.
        offset: where `data` begins in the block, in bytes; None where it is no part of the block.
    """

    __slots__ = (
        "_data",
        "_offset",
        "accept",
        "dtype",
        "extents",
        "is_closed",
        "is_on_host",
        "is_private",
        "is_writable",
        "kind",
        "memory",
        "n_batch_axes",
        "plain",
        "side",
    )

    def __init__(
        self, memory: Memory, data: NDArray[Any], n_batch_axes: int, offset: int | None = None
    ) -> None:
        self.memory: Memory | None = memory  # None once it was released
        self.kind = memory.kind
        self.dtype = data.dtype
        self.extents = data.shape
        self.n_batch_axes = n_batch_axes
        self._offset = offset
        self._data: NDArray[Any] | None = data
        # Attributes, not properties: each read and write of an Array asks for them.
        self.is_closed = False  # whether the memory was released
        self.is_on_host = memory.is_on_host  # whether `data` is NumPy's; otherwise it is CuPy's
        self.is_private = memory.is_private  # whether another process is sent a copy of the rows
        self.is_writable = memory.is_on_host and data.flags.writeable  # by NumPy
        self.side: Side = memory.side
        # The classes of values that NumPy can assign as they are, and the function that converts
        # all other values. On a device no value can be assigned as it is: a write is work in a
        # stream.
        self.plain = PLAIN if memory.is_on_host else _NONE
        self.accept: Callable[[Any], Any] = to_host if memory.is_on_host else to_device
        memory.acquire()

    @classmethod
    def allocate(
        cls, storage: str | Memory, shape: tuple[int, ...], dtype: np.dtype[Any], n_batch_axes: int
    ) -> Buffer:
        """Return a zeroed buffer in new memory of a kind, or in the next part of a given block."""
        nbytes = nbytes_of(shape, dtype)
        if not isinstance(storage, Memory):
            storage = allocate(storage, aligned(nbytes))
        storage.check_dtype(dtype)
        offset = storage.take(nbytes)
        return cls(storage, storage.array(offset, shape, dtype), n_batch_axes, offset)

    @property
    def data(self) -> NDArray[Any]:
        """The rows, padding and ring included.

        Raises:
            ValueError: the Array was closed.
        """
        self.check_open()
        assert self._data is not None
        return self._data

    @property
    def parts(self) -> dict[str, AnyArray]:
        """All rows, as arrays over the parts of memory that hold them, by the parts' names.

        They are in the order in which they were placed; the first one has the rows' dtype.
        """
        return {"rows": self.data}

    def check_open(self) -> None:
        """Raise ValueError if the Array was closed."""
        if self.is_closed:
            raise ValueError("the Array is closed: its memory was given back; allocate a new one")

    def device_data(self) -> DeviceArray:
        """Return the rows as a CuPy array over the same memory; of device memory it is `data`.

        Raises:
            TypeError: no GPU can use memory of this kind.
        """
        data = self.data
        if self._offset is None:
            raise TypeError("no GPU can use memory that another library owns")
        assert self.memory is not None
        return self.memory.device_array(self._offset, data.shape, data.dtype)

    @property
    def data_side(self) -> Side:
        """The side whose library `data` belongs to: of managed memory the host's, NumPy."""
        return "host" if self.is_on_host else "gpu"

    def on_side(self, side: Side) -> AnyArray:
        """Return the rows as an array of NumPy for the host, of CuPy for a GPU.

        Raises:
            TypeError: that side can't use the memory.
        """
        if side == "gpu":
            return self.device_data()
        if not self.is_on_host:
            raise TypeError("device memory is not on the host: gather on the GPU, or copy it")
        return self.data

    def in_order(self) -> AbstractContextManager[object]:
        """Return a context in which work on `data` goes to the caller's current stream.

        Raises:
            RuntimeError: `data` is memory of another device than the current one.
        """
        if self.is_on_host:
            return nullcontext()
        cuda.check_current(self.data)
        return cuda.use_stream()

    def copy_from(self, other: Buffer) -> None:
        """Overwrite all rows with those of a buffer of the same kind and shape, in any memory.

        The docstring of `Array.to` says which side waits for which.
        """
        source = other.data
        assert other.memory is not None
        if self.is_on_host:
            self.data[...] = to_host(source)
        else:
            is_for_gpu = other.memory.is_for_gpu
            put_on_device(other.device_data() if is_for_gpu else source, out_device=self.data)

    def make_room(self, shape: Sequence[int]) -> None:
        """Take memory for rows of a visible shape, which this memory has room for."""

    def moves_around_end(self, window: Window) -> list[tuple[AnyArray, AnyArray]]:
        """Return the copies that are left when a window wraps, as `Array.advance_window` does."""
        return [self.around_end(window.full_size)] if window.padding else []

    def around_end(self, full_size: int, begin: int = 0) -> tuple[AnyArray, AnyArray]:
        """Return the rows around a ring's beginning and the rows around its end.

        The second are copied to the first when the ring is written for another time.

        Args:
            full_size: number of rows of the ring.
            begin: the first row that takes part; the rows before it stay.

        Returns:
            Destination and source of the copy. On a device, a source that overlaps its destination
            is a copy, made in the caller's current stream.
        """
        data = self.data[begin:]
        n_rows = len(data) - full_size
        destination, source = data[:n_rows], data[full_size:]
        # A GPU copies rows in no order, so an overlapping source is copied first. NumPy does that
        # by itself.
        is_overlapping = n_rows > full_size and not self.is_on_host
        with self.in_order():
            return destination, source.copy() if is_overlapping else source

    def close(self) -> None:
        """Release the memory. Called again, it does nothing."""
        if not self.is_closed:
            self._data = None
            self.is_closed = True
            memory, self.memory = self.memory, None
            assert memory is not None
            memory.release()

    def closed(self) -> Buffer:
        """Return a buffer like this one, closed, which leaves this one as it is."""
        data = self.data
        assert self.memory is not None
        other = Buffer(self.memory, data, self.n_batch_axes, self._offset)
        other.close()
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        data = self.data
        if self.is_private:
            return copy_of, (np.array(data), data.dtype, self.n_batch_axes, self.kind)
        return _place, (self.memory, self._offset, data.shape, data.dtype, self.n_batch_axes)


def copy_of(data: NDArray[Any], dtype: np.dtype[Any], n_batch_axes: int, kind: str) -> Buffer:
    """Return a buffer that holds a copy of values that another process sent.

    Args:
        data: the values.
        dtype: their type, which is sent, too: NumPy's own pickles come out in the machine's byte
            order.
        n_batch_axes: number of leading axes that are batch dimensions.
        kind: kind of the memory; where this process does not know it, the memory is local.
    """
    storage = kind if kind in KINDS else "local"
    buffer = Buffer.allocate(storage, data.shape, dtype, n_batch_axes)
    buffer.data[...] = data
    return buffer


def _place(
    memory: Memory, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], n_batch_axes: int
) -> Buffer:
    return Buffer(memory, memory.array(offset, shape, dtype), n_batch_axes, offset)
