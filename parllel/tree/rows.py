"""Copies of rows of a whole tree: all leaves in one launch of the `rows` kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from parllel import cuda
from parllel.kernels.row_index import Index
from parllel.kernels.row_table import RowTable, rows_at
from parllel.kernels.rows import check_rows

_WORD = 16  # bytes of one access
_THREADS = 256  # of a block: allowed on every GPU, not tuned on one yet
_MOST_GROUPS = 65_535  # the kernel goes on where the grid ends


def copy_rows_on_device(
    destination: Sequence[Any],
    source: Sequence[Any],
    destination_index: Index,
    source_index: Index,
    *,
    names: Sequence[str] | None = None,
) -> None:
    """Copy rows between device arrays, all leaves in one launch in the caller's current stream.

    destination[leaf][d[i]] = source[leaf][s[i]] for all i. Returns at once. The table of leaves,
    and index vectors, are copied to the device before.

    Args:
        destination, source: CuPy arrays [n, ...] with contiguous rows, over device memory or
            mapped host memory.
        destination_index, source_index: range, or int64 [k] on the host.
        names: what errors call the leaves.

    Raises:
        IndexError, TypeError, ValueError: as `kernels.rows.copy_rows`; nothing was launched.
    """
    sides = [[_locate(leaf) for leaf in side] for side in (destination, source)]
    table = RowTable(*sides, names=names)
    check_rows(table, destination_index, source_index)
    n_rows = len(destination_index)
    if not n_rows:
        return
    longest = int(table.entries[:, -1].max())
    lanes = min(_THREADS, 1 << max(0, -(-longest // _WORD) - 1).bit_length())
    rows_per_block = _THREADS // lanes
    groups = min(-(-n_rows // rows_per_block), _MOST_GROUPS)
    cuda.launch(
        "rows",
        (groups, len(table.entries)),
        (lanes, rows_per_block),
        [
            cuda.to_device(table.entries),
            np.int64(n_rows),
            *_picks(destination_index),
            *_picks(source_index),
        ],
    )


def copy_blocks_on_device(
    destination: Sequence[Any], source: Sequence[Any], *, names: Sequence[str] | None = None
) -> None:
    """Copy whole contiguous device arrays, each of its own size, in one launch as above."""
    written, read = ([leaf.reshape(1, -1) for leaf in side] for side in (destination, source))
    copy_rows_on_device(written, read, range(1), range(1), names=names)


def _picks(index: Index) -> list[Any]:
    """Return a kernel's three arguments for an index: a vector or 0, then start and step."""
    if isinstance(index, range):
        return [np.int64(0), np.int64(index.start), np.int64(index.step)]
    return [cuda.to_device(np.ascontiguousarray(index, np.int64)), np.int64(0), np.int64(0)]


def _locate(leaf: Any) -> Any:
    rows = rows_at(leaf.data.ptr, leaf.shape, leaf.strides, leaf.itemsize)
    if rows is None:
        raise ValueError(
            f"rows: strides {leaf.strides} of shape {leaf.shape}, expected C-contiguous rows"
        )
    return rows
