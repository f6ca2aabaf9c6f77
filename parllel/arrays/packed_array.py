"""PackedArray: memory that gathers pack elements of different length into; its spec."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from numpy.typing import DTypeLike

from parllel import cuda
from parllel.arrays.array import Array, KindSpec
from parllel.arrays.array_spec import ArraySpec
from parllel.arrays.buffer import Buffer
from parllel.arrays.jagged import Jagged
from parllel.arrays.jagged_writer import LENGTH
from parllel.arrays.parted_buffer import PartedBuffer
from parllel.cuda import AnyArray
from parllel.ops.ragged import PackedRows
from parllel.storages import Memory, Side, aligned, allocate, nbytes_of


@dataclass(frozen=True)
class PackedSpec(KindSpec):
    """Shape, dtype and capacity of a PackedArray.

    >>> spec = PackedSpec.of((8,), "float32", (3,), capacity=16)
    >>> spec.shape, spec.nbytes
    ((8, 16, 3), 1608)
    """

    kind = "packed"

    capacity: int

    @classmethod
    def of(
        cls,
        batch_shape: Sequence[int],
        dtype: DTypeLike,
        feature_shape: Sequence[int] = (),
        padding: int = 0,
        full_size: int | None = None,
        capacity: int = 0,
    ) -> Self:
        """Check the arguments of a PackedArray, and return them as a spec.

        Args:
            batch_shape: (n,), the number of elements.
            dtype: type of the values.
            feature_shape: shape of one item of an element.
            padding, full_size: as for `ArraySpec`; no rows but the window's are of use.
            capacity: items that there is room for, for each element.
        """
        plain = ArraySpec.of(batch_shape, dtype, feature_shape, padding, full_size)
        return cls(**vars(plain), capacity=operator.index(capacity))

    def make(self, storage: str | Memory = "local") -> PackedArray:
        """Allocate a PackedArray as this spec describes it.

        Args:
            storage: kind of memory, or a block of memory that has room for the PackedArray.
        """
        return PackedArray(self, storage)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the room for all elements, [n, capacity, *feature_shape]."""
        return (*self.batch_shape, self.capacity, *self.feature_shape)

    @property
    def extents(self) -> tuple[int, ...]:
        """Shape of all values, [n * capacity, *feature_shape]."""
        return (self.batch_shape[0] * self.capacity, *self.feature_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of values and offsets, and of the gap between them."""
        offsets = nbytes_of((self.batch_shape[0] + 1,), LENGTH)
        return aligned(nbytes_of(self.extents, self.dtype)) + offsets


class PackedBuffer(PartedBuffer):
    """Values of elements, one after the other, and their offsets in a buffer of their own.

    >>> import numpy as np
    >>> from parllel.storages import allocate
    >>> memory = allocate("local", 512)
    >>> values = Buffer.allocate(memory, (6, 2), np.dtype(np.float32), 1)
    >>> PackedBuffer(values, Buffer.allocate(memory, (4,), LENGTH, 1)).extents
    (3,)

    Args:
        values: buffer [n * capacity, *item_shape].
        offsets: buffer of int64 [n + 1].
    """

    __slots__ = ("offsets", "values")

    def __init__(self, values: Buffer, offsets: Buffer) -> None:
        super().__init__({"values": values, "offsets": offsets})
        self.values, self.offsets = values, offsets
        self.extents = (offsets.extents[0] - 1,)

    def __reduce__(self) -> tuple[Any, ...]:
        self.check_open()
        return PackedBuffer, (self.values, self.offsets)


class PackedArray(Array):
    """Memory for n elements of different length, which a gather packs one after the other.

    >>> packed = PackedSpec.of((2,), "float32", (3,), capacity=4).make()
    >>> packed.gather_output("host").values.shape, len(packed.to_torch().values)
    ((8, 3), 0)

    There is room for n elements of any length up to the capacity. What is read has no more than
    what was packed last. Nothing else is done with it: it has no rows to index or to write.

    Args:
        spec: what it looks like.
        storage: kind of memory, or a block of memory that has room for the PackedArray.
    """

    __slots__ = ("_spec",)

    _buffer: PackedBuffer

    def __init__(self, spec: PackedSpec, storage: str | Memory) -> None:
        memory = storage if isinstance(storage, Memory) else allocate(storage, aligned(spec.nbytes))
        values = Buffer.allocate(memory, spec.extents, spec.dtype, 1)
        offsets = Buffer.allocate(memory, (spec.batch_shape[0] + 1,), LENGTH, 1)
        self._spec = spec
        self._assemble(PackedBuffer(values, offsets), (range(spec.batch_shape[0]),), None)

    @property
    def spec(self) -> ArraySpec:
        """What it looks like."""
        return self._spec

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the room for all elements, [n, capacity, *item_shape]."""
        return self._spec.shape

    @property
    def place(self) -> None:
        """None: what is read has another length each time."""
        return

    def gather_output(self, side: Side) -> PackedRows:
        """Return the memory that gathers write.

        Args:
            side: the side that gathers.
        """
        return PackedRows(self._buffer.values.on_side(side), self._buffer.offsets.on_side(side))

    def to_ndarray(self) -> Any:  # Any: a Jagged; an Array's is an array
        """Return the elements as a packed `Jagged` of NumPy, which is a copy of device memory."""
        found = self._read("host" if self.is_on_host else "gpu")
        return found.to_ndarray()

    def to_cupy(self) -> Any:  # Any: as of `to_ndarray`
        """Return the elements as a packed `Jagged` of CuPy; the host waits for their number."""
        return self._read("gpu")

    def to_torch(self) -> Any:  # Any: as of `to_ndarray`
        """Return the elements as a packed `Jagged` of tensors over this memory.

        In memory of a GPU, the host waits for the number of their items, in the caller's current
        stream: no tensor has a length that only the device knows. While that stream is being
        captured in a CUDA graph, the Jagged has a `capacity`, and all of this memory.
        """
        return self._read(self._buffer.side).to_torch()

    def _read(self, side: Side) -> Jagged:
        values, offsets = self.gather_output(side)
        if side == "gpu" and cuda.is_capturing():
            return self._room(values, offsets)
        last = cuda.to_host(offsets[-1:]) if side == "gpu" else offsets[-1:]
        return Jagged(values[: int(last[0])], offsets)

    def fixed_tensors(self) -> Any:  # Any: as of `to_torch`
        """Return a `Jagged` of tensors over all of this memory, whatever is packed into it."""
        return self._room(*self.gather_output(self._buffer.side)).to_torch()

    def _room(self, values: AnyArray, offsets: AnyArray) -> Jagged:
        return Jagged(values, offsets, None, (), self._spec.capacity)

    def __getitem__(self, index: Any) -> NoReturn:
        raise TypeError("a PackedArray has no rows to index: read it, and index the Jagged")

    def __setitem__(self, index: Any, value: object) -> NoReturn:
        raise TypeError("a PackedArray is written by gathers alone")

    def __repr__(self) -> str:
        return f"PackedArray({self._spec}, storage={self.storage!r})"
