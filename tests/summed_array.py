"""SummedArray: a kind of Array that is no part of the package, in one file.

Beside each row it keeps the sum of the row, which each writer of the row writes, too: a sampler, a
worker process, or a launch that brings a staged step to the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array, ArraySpec, KindSpec, RowWriter
from parllel.arrays.array import ArrayView
from parllel.arrays.buffer import Buffer
from parllel.arrays.interop import to_host
from parllel.arrays.location import Location
from parllel.arrays.window import Window
from parllel.cuda import AnyArray
from parllel.storages import Memory, aligned, allocate, nbytes_of

_SUM = np.dtype(np.float32)


@dataclass(frozen=True)
class SummedSpec(KindSpec):
    """Shape, dtype and window of a SummedArray."""

    kind = "summed"

    def make(self, storage: str | Memory) -> SummedArray:
        return SummedArray(self, storage)

    @property
    def nbytes(self) -> int:
        return aligned(super().nbytes) + nbytes_of(self.extents[: len(self.batch_shape)], _SUM)


@dataclass(frozen=True)
class SumWriter(RowWriter):
    """Writes samples, and their sums beside them."""

    dtype: np.dtype[Any]
    feature_shape: tuple[int, ...]

    def part_specs(self, batch_shape: Sequence[int]) -> dict[str, ArraySpec]:
        rows = ArraySpec.of(batch_shape, self.dtype, self.feature_shape)
        return {"row": rows, "sum": ArraySpec.of(batch_shape, _SUM)}

    def write(self, parts: Mapping[str, NDArray[Any]], samples: Sequence[NDArray[Any]]) -> None:
        for number, sample in enumerate(samples):
            parts["row"][number] = sample
            parts["sum"][number] = np.sum(sample)


class SummedBuffer(Buffer):
    """The rows, and their sums in a buffer of their own."""

    __slots__ = ("sums",)

    def __init__(self, rows: Buffer, sums: Buffer) -> None:
        assert rows.memory is not None
        super().__init__(rows.memory, rows.data, rows.n_batch_axes, rows._offset)
        rows.close()
        self.sums = sums

    @property
    def parts(self) -> dict[str, AnyArray]:
        return {"row": self.data, "sum": self.sums.data}

    def copy_from(self, other: Buffer) -> None:
        assert isinstance(other, SummedBuffer)
        super().copy_from(other)
        self.sums.copy_from(other.sums)

    def moves_around_end(self, window: Window) -> list[tuple[AnyArray, AnyArray]]:
        return [*super().moves_around_end(window), *self.sums.moves_around_end(window)]

    def close(self) -> None:
        super().close()
        self.sums.close()


class SummedArray(Array):
    """Rows whose sums are kept beside them."""

    __slots__ = ()

    _buffer: SummedBuffer

    def __init__(self, spec: SummedSpec, storage: str | Memory) -> None:
        if not isinstance(storage, Memory):
            storage = allocate(storage, aligned(spec.nbytes))
        n_axes = len(spec.batch_shape)
        rows = Buffer.allocate(storage, spec.extents, spec.dtype, n_axes)
        sums = Buffer.allocate(storage, spec.extents[:n_axes], _SUM, n_axes)
        window = spec.window()
        location = (window.rows, *map(range, spec.extents[1:]))
        self._assemble(SummedBuffer(rows, sums), location, window)

    def _view(self, location: Location, data: NDArray[Any] | None = None) -> Array:
        return SummedView(self._buffer, location, data)

    @property
    def spec(self) -> ArraySpec:
        plain = super().spec
        return plain if self._window is None else SummedSpec(**vars(plain))

    @property
    def row_writer(self) -> SumWriter:
        return SumWriter(self.dtype, self.feature_shape)

    def row_parts(self, *, checked: bool = False) -> dict[str, Array]:
        return {"row": ArrayView(self._buffer, self._location), "sum": self.sums}

    @property
    def sums(self) -> Array:
        """The sums of the rows."""
        return ArrayView(self._buffer.sums, self._location[: self._buffer.n_batch_axes])

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value)
        rows = self[index]
        assert isinstance(rows, SummedArray)
        values = to_host(rows)
        axes = tuple(range(rows.n_batch_dims, values.ndim))
        rows.sums[...] = values.sum(axis=axes, dtype=_SUM)


class SummedView(SummedArray, ArrayView):
    """A part of a SummedArray."""

    __slots__ = ()

    def __init__(
        self, buffer: SummedBuffer, location: Location, data: NDArray[Any] | None = None
    ) -> None:
        ArrayView.__init__(self, buffer, location, data)
