"""Copies of rows, all leaves of a tree at once: the kernel, its two entries, the checks before it.

One launch takes the rows of an index from one place to the rows of another index in another
place, whatever the leaves' dtypes and shapes are: a row is some bytes at an address.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from parllel.kernels.addresses import copy_1, copy_4, copy_4_of_16, copy_8, copy_16, load_int64
from parllel.kernels.row_share import SHARE_PARTS, copy_share
from parllel.kernels.row_table import Index, Integers, RowTable, checked
from parllel.kernels.targets import CpuKernel, DeviceEntry, pointer_to
from parllel.kernels.teams import TEAM_PARTS, Teams, find_share

DONE, COUNTS_DIFFER, OUT_OF_RANGE, MAY_OVERLAP = range(4)
ENTRY_NBYTES = 5 * 8  # of RowTable's integers for one leaf
NO_VECTOR = np.zeros(0, np.int64)


def copy_rows(table: RowTable, destination_index: Index, source_index: Index) -> None:
    """Copy rows of host memory: in every leaf, source row s[i] to destination row d[i].

    destination[leaf][d[i]] = source[leaf][s[i]] for all i

    Rows are counted from 0 in the arrays that the table was made of; a negative index is no row.
    A source row may be read many times. A destination row that is named twice ends up with one of
    its two source rows: with the later one here, with bytes of either one on a GPU.

    Runs in the calling thread, without the GIL. An index that is neither a range nor a contiguous
    int64 vector is converted, which allocates. The first call compiles, or loads what an earlier
    process compiled.

    Args:
        table: where the rows lie; in memory that this process can read and write.
        destination_index: range, or integers [n]: the rows to write.
        source_index: range, or integers [n]: the rows to read.

    Raises:
        TypeError: an index is no range and no array of integers.
        IndexError: a row is outside a leaf. Nothing has been written then.
        ValueError: the indices have different lengths, or a row that is written shares a byte
            with one that is read. Nothing has been written then.
    """
    outcome = _run(table, destination_index, source_index, table.is_apart, True)
    if outcome != DONE:
        destination, source = checked(table, destination_index, source_index)
        # The entry may have refused an index of another dtype, or one that it would overwrite, and
        # leaves whose rows lie in each other's gaps.
        outcome = _run(table, destination, source, True, True)
        assert outcome == DONE, "the compiled entry refuses what no check finds wrong"


def check_rows(table: RowTable, destination_index: Index, source_index: Index) -> None:
    """Raise what `copy_rows` would raise, and copy nothing.

    A GPU checks no index: what is out of range would be read from, and written to, somewhere else.
    """
    if _run(table, destination_index, source_index, table.is_apart, False) != DONE:
        checked(table, destination_index, source_index)


class Leaf(NamedTuple):
    """An entry of the table."""

    destination: int
    destination_stride: int
    source: int
    source_stride: int
    nbytes: int


class Picks(NamedTuple):
    """One row for each number from 0: `vector[number]`, or `start + number * step`."""

    vector: int  # an address of int64 numbers; 0 where there are none
    start: int
    step: int


def read_leaf(table: int, number: int) -> Leaf:
    """Return an entry of the table at an address."""
    at = table + number * ENTRY_NBYTES
    return Leaf(
        load_int64(at),
        load_int64(at + 8),
        load_int64(at + 16),
        load_int64(at + 24),
        load_int64(at + 32),
    )


def address_bits(leaf: Leaf) -> int:
    """Return a number whose low bits are 0 as far as they are in every row's address."""
    return leaf.destination | leaf.destination_stride | leaf.source | leaf.source_stride


def pick(picks: Picks, number: int) -> int:
    """Return a row."""
    if picks.vector != 0:
        return load_int64(picks.vector + number * 8)
    return picks.start + number * picks.step


def copy_row(destination: int, source: int, nbytes: int) -> None:
    """Copy a row on a CPU: words of 16 bytes while there are any, then of 8, then of 4, then bytes.

    A CPU of today loads words from any address.
    """
    at = 0
    while at + 3 * 16 < nbytes & ~15:
        copy_4_of_16(destination + at, source + at, 16)
        at += 4 * 16
    while at < nbytes & ~15:
        copy_16(destination + at, source + at)
        at += 16
    if at < nbytes & ~7:
        copy_8(destination + at, source + at)
        at += 8
    if at < nbytes & ~3:
        copy_4(destination + at, source + at)
        at += 4
    while at < nbytes:
        copy_1(destination + at, source + at)
        at += 1


def copy_picked_row(leaf: Leaf, written: Picks, read: Picks, number: int) -> None:
    """Copy one of a leaf's rows on a CPU."""
    destination = leaf.destination + pick(written, number) * leaf.destination_stride
    source = leaf.source + pick(read, number) * leaf.source_stride
    copy_row(destination, source, leaf.nbytes)


def copy_rows_on_grid(
    table: int,
    n_rows: int,
    destination_vector: int,
    destination_start: int,
    destination_step: int,
    source_vector: int,
    source_start: int,
    source_step: int,
    n_wide: int,
    n_narrow: int,
    wide_bits: int,
    narrow_bits: int,
    n_riders: int,
) -> None:
    """Copy all rows. Grid and block have one axis; `Teams` says who copies what.

    Any grid copies everything: threads go on where the grid ends.
    """
    share = find_share(Teams(n_wide, n_narrow, wide_bits, narrow_bits, n_riders))
    written = Picks(destination_vector, destination_start, destination_step)
    read = Picks(source_vector, source_start, source_step)
    at = share.row
    while at < share.n_leaves * n_rows:
        number = at
        leaf_number = share.first_leaf
        while number >= n_rows:  # at most as often as there are leaves: quicker than a division
            number -= n_rows
            leaf_number += 1
        leaf = read_leaf(table, leaf_number)
        destination = leaf.destination + pick(written, number) * leaf.destination_stride
        source = leaf.source + pick(read, number) * leaf.source_stride
        bits = address_bits(leaf)
        copy_share(destination, source, leaf.nbytes, bits, share.lane, share.lanes, share.mates)
        at += share.row_step


def copy_words(leaf: Leaf, written: Picks, read: Picks, n_rows: int) -> None:
    """Copy rows of 1, 4, 8 or 16 bytes on a CPU. The compiler makes a loop for each size."""
    for number in range(n_rows):
        destination = leaf.destination + pick(written, number) * leaf.destination_stride
        source = leaf.source + pick(read, number) * leaf.source_stride
        if leaf.nbytes == 1:
            copy_1(destination, source)
        elif leaf.nbytes == 4:
            copy_4(destination, source)
        elif leaf.nbytes == 8:
            copy_8(destination, source)
        else:
            copy_16(destination, source)


def copy_rows_in_turn(table: int, n_leaves: int, n_rows: int, written: Picks, read: Picks) -> None:
    """Copy all rows on a CPU: leaf by leaf, each leaf's rows in order."""
    for leaf_number in range(n_leaves):
        leaf = read_leaf(table, leaf_number)
        if leaf.nbytes in (1, 4, 8, 16):
            copy_words(leaf, written, read, n_rows)
        else:
            for number in range(n_rows):
                copy_picked_row(leaf, written, read, number)


def is_inside(start: int, step: int, count: int, limit: int) -> bool:
    """Return whether a range's rows lie in [0, limit). Forms no product: it could overflow."""
    room = limit - 1 - start if step > 0 else start
    return 0 <= start < limit and (count == 1 or count - 1 <= room // abs(step))


def find_span(vector: Integers, start: int, step: int, count: int, limit: int) -> tuple[int, int]:
    """Return the lowest and the highest row; (-1, -1) for a range that leaves [0, limit)."""
    if vector.size > 0:
        rows = pointer_to(vector)  # known to be contiguous, so that vectors are loaded
        lowest = highest = rows[0]
        for at in range(vector.size):
            lowest = min(lowest, rows[at])
            highest = max(highest, rows[at])
        return lowest, highest
    if not is_inside(start, step, count, limit):
        return -1, -1
    last = start + (count - 1) * step
    return min(start, last), max(start, last)


def find_extent(
    address: int, stride: int, nbytes: int, lowest: int, highest: int
) -> tuple[int, int]:
    """Return where the rows from lowest to highest begin and end, gaps included."""
    first, last = lowest * stride, highest * stride
    return address + min(first, last), address + max(first, last) + nbytes


def address_of(vector: Integers) -> int:
    """Return a vector's address; 0 where it is empty."""
    # numpy.int64: Numba has addresses as uint64, and uint64 plus int64 would be float64.
    return int(np.int64(vector.ctypes.data)) if vector.size > 0 else 0


def is_hit(begin: int, end: int, vector: Integers) -> bool:
    """Return whether a vector has a byte in [begin, end)."""
    address = address_of(vector)
    return begin < address + vector.size * 8 and address < end


def copy_checked_rows(
    table: int,
    n_leaves: int,
    n_destination: int,
    n_source: int,
    is_apart: bool,
    writes: bool,
    destination_vector: Integers,
    destination_start: int,
    destination_step: int,
    destination_count: int,
    source_vector: Integers,
    source_start: int,
    source_step: int,
    source_count: int,
) -> int:
    """Check all that the types leave open, then copy; return what was found.

    An index is a vector that is not empty, or else a range of `count` rows.
    """
    n_rows = max(destination_vector.size, destination_count)
    if n_rows != max(source_vector.size, source_count):
        return COUNTS_DIFFER
    if n_rows == 0:
        return DONE
    low_written, high_written = find_span(
        destination_vector, destination_start, destination_step, destination_count, n_destination
    )
    low_read, high_read = find_span(
        source_vector, source_start, source_step, source_count, n_source
    )
    if min(low_written, low_read) < 0 or high_written >= n_destination or high_read >= n_source:
        return OUT_OF_RANGE
    for number in range(n_leaves):
        leaf = read_leaf(table, number)
        begin, end = find_extent(
            leaf.destination, leaf.destination_stride, leaf.nbytes, low_written, high_written
        )
        begin_read, end_read = find_extent(
            leaf.source, leaf.source_stride, leaf.nbytes, low_read, high_read
        )
        is_mixed = not is_apart and begin < end_read and begin_read < end
        if is_mixed or is_hit(begin, end, destination_vector) or is_hit(begin, end, source_vector):
            return MAY_OVERLAP
    if writes:
        written = Picks(address_of(destination_vector), destination_start, destination_step)
        read = Picks(address_of(source_vector), source_start, source_step)
        copy_rows_in_turn(table, n_leaves, n_rows, written, read)
    return DONE


PARTS = (
    read_leaf,
    pick,
    copy_row,
    copy_picked_row,
    copy_words,
    copy_rows_in_turn,
    is_inside,
    find_span,
    find_extent,
    address_of,
    is_hit,
)
DEVICE = DeviceEntry(
    "rows",
    copy_rows_on_grid,
    f"void({', '.join(['int64'] * 13)})",
    (*TEAM_PARTS, read_leaf, address_bits, pick, *SHARE_PARTS),
)


_INDEX = "Array(int64, 1, 'C', readonly=True), int64, int64, int64"
_ON_CPU = CpuKernel(
    copy_checked_rows,
    f"int64(int64, int64, int64, int64, boolean, boolean, {_INDEX}, {_INDEX})",
    parts=PARTS,
)


def _run(
    table: RowTable,
    destination_index: Index,
    source_index: Index,
    is_apart: bool,
    writes: bool,
) -> int | None:
    """Return what the compiled entry found; None where it does not take the arguments' types."""
    entry = _ON_CPU.compiled
    try:
        return entry(
            table.address,
            len(table.names),
            table.n_destination,
            table.n_source,
            is_apart,
            writes,
            *_as_arguments(destination_index),
            *_as_arguments(source_index),
        )
    except (TypeError, OverflowError):  # raised before anything runs
        return None


def _as_arguments(index: Index) -> tuple[npt.NDArray[np.integer[Any]], int, int, int]:
    if type(index) is range:
        return NO_VECTOR, index.start, index.step, len(index)
    return index, 0, 0, 0
