"""RowCopy: copies of rows of many arrays in one call of the `rows` kernel, or in one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.cuda import AnyArray, DeviceArray, Stream
from parllel.kernels.image_shift import NO_IMAGE
from parllel.kernels.row_entry import DEVICE as ENTRY
from parllel.kernels.row_table import Rows, RowTable, rows_at
from parllel.kernels.rows import check_rows, copy_rows
from parllel.ops.copy_grid import CopyGrid, count_lanes, split_row
from parllel.ops.ragged import PackedRows, RaggedGather
from parllel.ops.sides import (
    AnyIndex,
    address_of,
    common_side,
    index_arguments,
    is_on_device,
    to_side,
)
from parllel.ops.stack_gather import RowSource, StackGather

Gather: TypeAlias = Callable[..., None]  # of an index and, where images are shifted, of a seed


class RowCopy:
    """A copy of rows from some arrays to others, prepared once and run many times.

    destination[leaf][d[i]] = source[leaf][s[i]] for all i

    Of arrays of NumPy, rows are copied when `run` returns. Of arrays of CuPy, over device memory
    or mapped host memory, each run is one launch in the caller's current stream. The constructor
    copies a table of the leaves to the device in the stream that is current: a run in another
    stream must wait for that copy.

    >>> written, read = np.zeros((3, 2)), np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> RowCopy([written], [read]).run(np.array([2, 0]), range(2))
    >>> written.tolist()
    [[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]

    Args:
        destination: for each leaf an array [n, ...], the rows to write.
        source: for each leaf an array [m, ...], the rows to read, of the same dtype and row shape.
        names: for each leaf a name, by which errors call it.
        allocate: for arrays of CuPy, a function of a number n that returns device memory for the
            table, int64 [n]. Where it is given, launches write the table and not a copy from the
            host, one for each leaf and part of a long row: constructor and run can then be captured
            in a CUDA graph, whose own memory this should be.

    Raises:
        TypeError: some arrays are NumPy's and some are CuPy's.
        ValueError: as `RowTable`: dtypes or rows differ, are not contiguous, or overlap.
    """

    def __init__(
        self,
        destination: Sequence[AnyArray],
        source: Sequence[AnyArray],
        *,
        names: Sequence[str] | None = None,
        allocate: Callable[[int], DeviceArray] | None = None,
    ) -> None:
        arrays = (*destination, *source)
        self._device_table: DeviceArray | None = None  # None for arrays of NumPy
        if common_side("rows", arrays) == "host":
            self._table = RowTable.of_arrays(destination, source, names=names)
            return
        sides = [[_locate(leaf) for leaf in side] for side in (destination, source)]
        self._table = RowTable(*sides, names=names)
        self._owners = arrays
        entries = _split_rows(self._table.entries)
        self._grid = CopyGrid([_lanes_of(*entry) for entry in entries.tolist()])
        ordered = entries[self._grid.order]
        if allocate is None:
            self._device_table = to_side(ordered, "gpu")
        else:
            self._device_table = allocate(ordered.size)
            _write_table(ordered, self._device_table)

    def run(
        self,
        destination_index: AnyIndex,
        source_index: AnyIndex,
        *,
        stream: Stream | None = None,
    ) -> None:
        """Copy the source rows that one index names to the destination rows that another names.

        Args:
            destination_index, source_index: range, or integers [k]. For arrays of CuPy an index
                may also be a contiguous device array, int64 [k]. Neither index is checked then, so
                that a row outside a leaf reads or overwrites other memory. Integers of the host
                are copied to the device first.
            stream: where the launch is queued; the caller's current one by default.

        Raises:
            IndexError, TypeError, ValueError: as `kernels.rows.copy_rows`; nothing was written.
        """
        if self._device_table is None:
            copy_rows(self._table, destination_index, source_index)
            return
        if not (is_on_device(destination_index) or is_on_device(source_index)):
            check_rows(self._table, destination_index, source_index)
        n_rows = len(destination_index)
        if len(source_index) != n_rows:
            raise ValueError(f"rows: {n_rows} rows to write, {len(source_index)} to read")
        if n_rows:
            written = index_arguments(destination_index, stream=stream)
            read = index_arguments(source_index, stream=stream)
            arguments = [self._device_table, np.int64(n_rows), *written, *read]
            self._grid.launch("rows", n_rows, arguments, stream=stream)


def prepare_gather(
    destination: Sequence[AnyArray | PackedRows],
    source: Sequence[AnyArray | RowSource],
    *,
    names: Sequence[str],
) -> Gather:
    """Return a function that gathers the rows of an index to the destination's first rows.

    The function may be called many times. It gathers all leaves at once, by one launch for arrays
    of CuPy: as `RowCopy.run` does, as `StackGather.run` where a source holds single frames or
    images that are shifted, or as `RaggedGather.run` where a source's elements have different
    lengths. Where there are both, it takes two launches.

    Args:
        destination: for each leaf an array [n, ...] for rows, or [n, stack, ...] for stacks, or the
            memory of elements that are packed.
        source: for each leaf an array [m, ...] of rows, or the frames that stacks are made of, or
            slots with lengths.
        names: for each leaf a name, by which errors call it.

    Returns:
        A function of the index and, where images are shifted, of the seed.

    Raises:
        TypeError, ValueError: as `RowCopy`, `StackGather` and `RaggedGather`.
    """
    sources = [leaf if isinstance(leaf, RowSource) else RowSource(leaf) for leaf in source]
    if any(leaf.lengths is not None for leaf in sources):
        return _prepare_ragged(destination, sources)
    if not all(leaf.is_plain for leaf in sources):
        stacks = StackGather(sources, destination)
        return lambda index, seed=None: stacks.run(index, seed=seed)
    copy = RowCopy(destination, [leaf.frames for leaf in sources], names=names)
    return lambda index, seed=None: copy.run(range(len(index)), index)


def _prepare_ragged(
    destination: Sequence[AnyArray | PackedRows], sources: Sequence[RowSource]
) -> Gather:
    """Return a gather of leaves of which some have elements of different length."""
    pairs = list(zip(sources, destination, strict=True))
    rides = [leaf.is_first is None and leaf.image == NO_IMAGE for leaf in sources]
    ragged = [pair for pair, rides_along in zip(pairs, rides, strict=True) if rides_along]
    others = [pair for pair, rides_along in zip(pairs, rides, strict=True) if not rides_along]
    gather = RaggedGather(*zip(*ragged, strict=True))
    if not others:
        return lambda index, seed=None: gather.run(index)
    stacks = StackGather(*zip(*others, strict=True))

    def run(index: AnyIndex, seed: AnyArray | None = None) -> None:
        gather.run(index)
        stacks.run(index, seed=seed)

    return run


def copy_blocks(
    destination: Sequence[AnyArray],
    source: Sequence[AnyArray],
    *,
    names: Sequence[str] | None = None,
) -> None:
    """Copy whole contiguous arrays, each of its own size, all at once as `RowCopy` does."""
    written, read = ([leaf.reshape(1, -1) for leaf in side] for side in (destination, source))
    RowCopy(written, read, names=names).run(range(1), range(1))


def _locate(leaf: AnyArray) -> Rows:
    rows = rows_at(address_of(leaf), leaf.shape, leaf.strides, leaf.itemsize)
    if rows is None:
        raise ValueError(
            f"rows: strides {leaf.strides} of shape {leaf.shape}, expected C-contiguous rows"
        )
    return rows


def _split_rows(entries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a table in which long rows are parts, each with its address: a leaf of its own."""
    parts = []
    for destination, destination_stride, source, source_stride, nbytes in entries.tolist():
        for at, length in split_row(nbytes):
            place = (destination + at, destination_stride, source + at, source_stride, length)
            parts.append(place)
    return np.array(parts, np.int64)


def _write_table(entries: NDArray[np.int64], table: DeviceArray) -> None:
    for number, entry in enumerate(entries):
        arguments = [table, np.int64(number), *entry]
        cuda.launch(ENTRY.name, (1,), (1,), arguments)


def _lanes_of(
    destination: int, destination_stride: int, source: int, source_stride: int, nbytes: int
) -> int:
    return count_lanes(nbytes, destination | destination_stride | source | source_stride)
