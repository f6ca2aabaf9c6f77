"""Copies of rows of whole trees: all leaves in one call of the `rows` kernel, or in one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from parllel.cuda import AnyArray, DeviceArray
from parllel.kernels.row_table import Rows, RowTable, rows_at
from parllel.kernels.rows import check_rows, copy_rows
from parllel.ops.launching import count_lanes, launch_leaves
from parllel.ops.sides import (
    AnyIndex,
    address_of,
    common_side,
    index_arguments,
    is_on_device,
    to_side,
)
from parllel.ops.stack_gather import RowSource, StackGather


class RowCopy:
    """A copy of rows from some arrays to others, prepared once and run many times.

    destination[leaf][d[i]] = source[leaf][s[i]] for all i

    The arrays are NumPy's, and rows are copied when `run` returns; or all of them are CuPy's, over
    device memory or mapped host memory, and each run is one launch in the caller's current stream.
    The table of leaves goes to the device here, once, in the stream that is current: who runs in
    another one orders it behind that.

    Args:
        destination: for each leaf an array [n, ...] of rows to write.
        source: for each leaf an array [m, ...] of rows to read, of the same dtype and row shape.
        names: what errors call the leaves.

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
    ) -> None:
        arrays = (*destination, *source)
        self._device_table: DeviceArray | None = None  # None for arrays of NumPy
        if common_side("rows", arrays) == "host":
            self._table = RowTable.of_arrays(destination, source, names=names)
            return
        sides = [[_locate(leaf) for leaf in side] for side in (destination, source)]
        self._table = RowTable(*sides, names=names)
        self._device_table = to_side(self._table.entries, "gpu")
        self._owners = arrays
        self._lanes = count_lanes(int(self._table.entries[:, -1].max()))

    def run(self, destination_index: AnyIndex, source_index: AnyIndex) -> None:
        """Copy the rows of one index to the rows of another.

        Args:
            destination_index, source_index: range, or integers [k]. Of arrays of CuPy it may be a
                contiguous device array, int64 [k], too: then neither index is checked, and a row
                outside a leaf is read from, or written to, somewhere else. Integers of the host
                are copied to the device first.

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
            self._launch(n_rows, destination_index, source_index)

    def _launch(self, n_rows: int, destination_index: AnyIndex, source_index: AnyIndex) -> None:
        launch_leaves(
            "rows",
            n_rows,
            len(self._table.names),
            self._lanes,
            [
                self._device_table,
                np.int64(n_rows),
                *index_arguments(destination_index),
                *index_arguments(source_index),
            ],
        )


def prepare_gather(
    destination: Sequence[AnyArray],
    source: Sequence[AnyArray | RowSource],
    *,
    names: Sequence[str],
) -> Callable[[AnyIndex], None]:
    """Return a function that gathers the rows of an index to the destination's first rows.

    It is called many times, as `RowCopy.run`, or as `StackGather.run` where a source is one of
    frames: all leaves at once, in one launch.

    Args:
        destination: for each leaf an array [n, ...] of rows, or [n, stack, ...] of stacks.
        source: for each leaf an array [m, ...] of rows, or what stacks are gathered from.
        names: what errors call the leaves.

    Raises:
        TypeError, ValueError: as `RowCopy` and `StackGather`.
    """
    sources = [leaf if isinstance(leaf, RowSource) else RowSource(leaf) for leaf in source]
    if not all(leaf.is_plain for leaf in sources):
        return StackGather(sources, destination).run
    copy = RowCopy(destination, [leaf.frames for leaf in sources], names=names)
    return lambda index: copy.run(range(len(index)), index)


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
