"""Readable: what an Array tells about itself, and how its elements are read out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from parllel.arrays.buffer import Buffer
from parllel.arrays.interop import to_tensor
from parllel.arrays.location import Location, count_dims, is_gathered, keys, shape_of

if TYPE_CHECKING:
    import torch


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
        return self._buffer.memory.kind

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

        Of a view made with integer arrays or a mask it is a gathered copy, read-only, so that a
        write that would be lost raises.
        """
        data = self._data
        if data is None or self._buffer.is_closed:
            first, second = keys(self._location)
            data = self._buffer.data[first]
            if second:
                gathered: NDArray[Any] = data[second]
                gathered.flags.writeable = False
                return gathered
            self._data = data
        return data[...]  # the caller may change the shape and the flags of its own

    def to_torch(self) -> torch.Tensor:
        """Return the visible elements as a torch tensor over the same memory.

        Of a view made with integer arrays or a mask it is a gathered copy.

        Raises:
            ValueError: the view has a negative step, which torch does not know.
        """
        data = self.to_ndarray()
        return to_tensor(data if data.flags.writeable else data.copy())

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False and is_gathered(self._location):
            raise ValueError(
                "a view made with integer arrays or a mask can't be read without a copy"
            )
        return np.array(self.to_ndarray(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.to_ndarray().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._buffer.data.__dlpack_device__()
        return device

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
