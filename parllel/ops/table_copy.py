"""TableCopy: copies of rows whose addresses each launch is told anew; and which ones it can."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.cuda import DeviceArray, Stream
from parllel.ops.copy_grid import CopyGrid, count_lanes, split_row

ENTRY_NUMBERS = 5  # int64 of the `rows` kernel's table, for each piece
_MOST_NARROWED = 16  # numbers of a row that are narrowed one by one: each is a piece


class Piece(NamedTuple):
    """Some bytes of each row of a leaf; all numbers are bytes.

    Args:
        destination, source: where they begin, counted from the leaf's address on either side.
        destination_stride, source_stride: from one row to the next.
        nbytes: number of bytes that each row has of them.
    """

    destination: int
    destination_stride: int
    source: int
    source_stride: int
    nbytes: int


class Pieces(NamedTuple):
    """The pieces that make up a copy of one leaf's rows.

    Args:
        pieces: the pieces.
        source_nbytes: bytes from the address of the source to the end of its last row.
    """

    pieces: tuple[Piece, ...]
    source_nbytes: int


class TableCopy:
    """A copy of the first rows of many leaves by one launch, which can go elsewhere each time.

    `RowCopy` has its addresses on the device, where a change is one more copy. The table of this
    one lies in page-locked memory: the host writes the addresses of the next run there, and the
    launch reads them over the bus. So the host has to wait for a run, by an event behind it,
    before it starts the next one with the same table.

    >>> from parllel import Array, cuda
    >>> from parllel.testing import simulated_cuda
    >>> with simulated_cuda("lazy"):
    ...     table = Array((1, ENTRY_NUMBERS), np.int64, storage="pinned")
    ...     narrowing = find_pieces((3,), np.dtype("int32"), (8,), np.dtype("int64"))
    ...     copy = TableCopy([narrowing], table.to_ndarray(), table.to_cupy())
    ...     written, read = cuda.to_device(np.zeros(3, "int32")), cuda.to_device(np.arange(3))
    ...     stream = copy.run(np.array([written.data.ptr]), np.array([read.data.ptr]), 3)
    ...     cuda.Event().record(stream).synchronize()
    ...     written.get()
    array([0, 1, 2], dtype=int32)

    Args:
        leaves: for each leaf what `find_pieces` returned.
        table: int64 [n, ENTRY_NUMBERS], page-locked memory with a row for each piece of all leaves,
            or more; overwritten.
        device_table: the same memory, as the device sees it.
    """

    def __init__(
        self, leaves: Sequence[Pieces], table: NDArray[np.int64], device_table: DeviceArray
    ) -> None:
        pieces = [(number, each) for number, leaf in enumerate(leaves) for each in leaf.pieces]
        self._grid = CopyGrid([_lanes_of(piece) for _, piece in pieces])
        entries = np.array([piece for _, piece in pieces], np.int64)[self._grid.order]
        self._leaf_of = np.array([number for number, _ in pieces], np.intp)[self._grid.order]
        self._offsets = entries[:, [0, 2]].T.copy()  # of the destination, of the source
        self._table = table[: len(pieces)]
        self._entries = entries
        self._device_table = device_table

    def run(
        self, destinations: NDArray[np.int64], sources: NDArray[np.int64], n_rows: int
    ) -> Stream:
        """Launch the copy in the caller's current stream. Returns at once.

        Args:
            destinations, sources: int64 [n_leaves], addresses of the leaves' first rows. No leaf's
                source shares a byte with a destination. The memory must stay until the launch ran.
            n_rows: rows of each leaf, 1 or more.

        Returns:
            The stream of the launch.
        """
        entries = self._entries
        np.add(self._offsets[0], destinations[self._leaf_of], out=entries[:, 0])
        np.add(self._offsets[1], sources[self._leaf_of], out=entries[:, 2])
        self._table[...] = entries
        arguments = [self._device_table, np.int64(n_rows), *_FIRST_ROWS, *_FIRST_ROWS]
        return self._grid.launch("rows", n_rows, arguments)


_FIRST_ROWS = np.int64(0), np.int64(0), np.int64(1)  # no vector, begin and step


@functools.lru_cache(maxsize=256)  # by the forms of a program's leaves
def find_pieces(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    source_strides: tuple[int, ...],
    source_dtype: np.dtype[Any],
) -> Pieces | None:
    """Return the pieces by which copied bytes are what an assignment would write; None for no such.

    There are some for rows of the same dtype, and for integers that the destination narrows, of
    which an assignment takes the low bytes.

    Args:
        shape: (n, ...), of both sides.
        dtype: the destination's type of elements. The destination is C-contiguous.
        source_strides: bytes from one element of the source to the next, on each axis.
        source_dtype: the source's type of elements.
    """
    if not shape or min(source_strides) < 0:
        return None
    features, strides = shape[1:], source_strides[1:]
    row_nbytes = math.prod(features) * dtype.itemsize
    reach = sum((n - 1) * step for n, step in zip(shape, source_strides, strict=True))
    span = reach + source_dtype.itemsize if 0 not in shape else 0
    if dtype == source_dtype and _is_contiguous(features, strides, dtype.itemsize):
        parts = split_row(row_nbytes)
        copied = [Piece(at, row_nbytes, at, source_strides[0], length) for at, length in parts]
        return Pieces(tuple(copied), span)
    is_narrower = {dtype.kind, source_dtype.kind} <= {"i", "u"} and (
        dtype.itemsize <= source_dtype.itemsize
    )
    is_same = dtype == source_dtype
    if not (is_narrower or is_same) or math.prod(features) > _MOST_NARROWED:
        return None
    numbers = [
        Piece(
            number * dtype.itemsize,
            row_nbytes,
            sum(at * step for at, step in zip(place, strides, strict=True)),
            source_strides[0],
            dtype.itemsize,
        )
        for number, place in enumerate(np.ndindex(features))
    ]
    return Pieces(tuple(numbers), span)


def most_pieces(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the most pieces that `find_pieces` finds for rows, whatever the source."""
    n_numbers = math.prod(shape[1:])
    n_parts = len(split_row(n_numbers * dtype.itemsize))
    return max(n_parts, n_numbers if n_numbers <= _MOST_NARROWED else 1)


def _is_contiguous(features: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    for length, stride in zip(reversed(features), reversed(strides), strict=True):
        if length != 1 and stride != itemsize:
            return False
        itemsize *= length
    return True


def _lanes_of(piece: Piece) -> int:
    # Addresses are told later: they mostly have the strides' alignment. Any lanes copy all.
    return count_lanes(piece.nbytes, piece.destination_stride | piece.source_stride)
