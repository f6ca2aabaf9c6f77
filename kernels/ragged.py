"""Gathers of elements of different length: packed one after the other, with their offsets.

An element lies at the beginning of a slot, and its length beside it. One launch serves all leaves
of a minibatch: it reads lengths, sums them up, and copies. A leaf of rows of one length is one
whose elements have one item each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from parllel.kernels.addresses import (
    copy_4_of_16,
    copy_16,
    load_int64,
    load_two_int64,
    store_int64,
)
from parllel.kernels.instructions import prefetch
from parllel.kernels.row_share import SHARE_PARTS, copy_share
from parllel.kernels.row_table import Index, Integers, as_index, check_inside
from parllel.kernels.rows import (
    DONE,
    NO_VECTOR,
    OUT_OF_RANGE,
    Picks,
    address_of,
    copy_row,
    find_span,
    is_inside,
    pick,
)
from parllel.kernels.sequences import BACK_BITS
from parllel.kernels.targets import CpuKernel, DeviceEntry
from parllel.kernels.teams import TEAM_PARTS, Teams, find_share

ENTRY_NBYTES = 12 * 8  # of a `RaggedLeaf`: pairs, which are loaded at once
WRONG_LENGTH = 4  # an outcome beside those of `rows`
_PLACE = (1 << BACK_BITS) - 1

# On a CPU. Slots lie anywhere: the beginnings of those that follow are brought while one is copied,
# and the CPU itself brings what comes behind these lines (measured with bench/bench_ragged.py).
SLOTS_AHEAD = 4
LINES_AHEAD = 6
LINE = 64  # bytes


class RaggedLeaf(NamedTuple):
    """One leaf of a gather, or a part of its slots: where elements lie, and where they are packed.

    Element i has the items of a slot from its beginning on, `lengths` of them. A leaf of rows of
    one length has no lengths: each row is one item.

    Args:
        destination: address of the first item to write; items follow each other without gaps.
        offsets: address of int64 [n + 1], written: where each element begins, in items, and where
            the last one ends. 0 where offsets are not wanted.
        source: address of slot 0.
        stride: bytes from a slot to the next one.
        item_nbytes: bytes of an item.
        capacity: items of a slot.
        lengths: address of int64 numbers, for each slot; 0 for rows of one length.
        rows: address of int64 numbers of slots: an index picks among them; 0 where it names slots
            itself. A number -1 - s below 0 is slot s beside the others. Of others the low bits
            count (`sequences.BACK_BITS`). They are not checked.
        beside: address of slots without gaps.
        beside_lengths: address of int64 numbers, for each of these slots.
        begin, nbytes: the part of each slot that is copied, in bytes.
    """

    destination: int
    offsets: int
    source: int
    stride: int
    item_nbytes: int
    capacity: int
    lengths: int
    rows: int
    beside: int
    beside_lengths: int
    begin: int
    nbytes: int


class RaggedTable:
    """Where the elements of all leaves are read and written; made once, used for many gathers.

    It holds addresses only: its maker keeps the memory alive, and gives the table only to a
    processor that can reach the addresses.

    Args:
        leaves: for each leaf its addresses and sizes; at least one.
        n_rows: number that an index of all leaves must be below.

    Attributes:
        entries: int64 [n_leaves, 12], read-only: the format of the kernel.
        address: address of the entries in host memory.
        n_leaves: number of leaves.
        n_rows: as given.
    """

    __slots__ = ("address", "entries", "n_leaves", "n_rows")

    def __init__(self, leaves: Sequence[RaggedLeaf], n_rows: int) -> None:
        self.entries: npt.NDArray[np.int64] = np.array(leaves, np.int64)
        self.entries.flags.writeable = False
        self.address: int = self.entries.__array_interface__["data"][0]
        self.n_leaves, self.n_rows = len(leaves), n_rows


def gather_ragged(table: RaggedTable, index: Index) -> None:
    """Gather elements in host memory, of all leaves: that of row index[i] to element i.

    offset[i + 1] = offset[i] + length[row],  output[offset[i] : offset[i + 1]] = slot[row, :length]

    where row = index[i], and offset[0] = 0. `RaggedLeaf` says what a leaf with `rows` and slots
    beside them gives.

    Runs in the calling thread, without the GIL. An index that is neither a range nor a contiguous
    int64 vector is converted, which allocates. The first call compiles, or loads what an earlier
    process compiled.

    Args:
        table: where the elements lie; in memory that this process can read and write. The outputs
            have room for as many whole slots as the index has rows.
        index: range, or integers [n], in memory apart from the outputs.

    Raises:
        TypeError: the index is no range and no array of integers.
        IndexError: a row is outside a leaf. Nothing has been written then.
        ValueError: the index has more axes than one, or a length is none of a slot. Nothing has
            been written then.
    """
    outcome = _run(table, index, writes=True)
    if outcome not in (DONE, WRONG_LENGTH):
        # The entry may have refused an index of another dtype only.
        outcome = _run(table, _checked(table, index), writes=True)
    if outcome == WRONG_LENGTH:
        raise ValueError(
            "ragged: an element's length is below 0, or beyond its slot; something else has written"
            " to the lengths"
        )
    assert outcome == DONE, "the compiled entry refuses what no check finds wrong"


def check_ragged(table: RaggedTable, index: Index) -> None:
    """Raise where a row of an index is outside a leaf, and read no memory: a GPU checks nothing."""
    if _run(table, index, writes=False) != DONE:
        _checked(table, index)


def _checked(table: RaggedTable, index: object) -> range | Integers:
    rows = as_index("index", index)
    check_inside("index", rows, table.n_rows)
    return rows


def read_ragged_leaf(table: int, number: int) -> RaggedLeaf:
    """Return an entry of the table at an address."""
    at = table + number * ENTRY_NBYTES
    destination, offsets = load_two_int64(at)
    source, stride = load_two_int64(at + 16)
    item_nbytes, capacity = load_two_int64(at + 32)
    lengths, rows = load_two_int64(at + 48)
    beside, beside_lengths = load_two_int64(at + 64)
    begin, nbytes = load_two_int64(at + 80)
    sizes = item_nbytes, capacity
    return RaggedLeaf(
        *(destination, offsets, source, stride, *sizes, lengths, rows),
        *(beside, beside_lengths, begin, nbytes),
    )


def find_slot(leaf: RaggedLeaf, number: int) -> int:
    """Return the slot that an index's number names; below 0 where it is beside the others."""
    slot = number
    if leaf.rows != 0:
        slot = load_int64(leaf.rows + number * 8)
    return slot if slot < 0 else slot & _PLACE


def find_length_of(leaf: RaggedLeaf, slot: int) -> int:
    """Return the length that is beside a slot, whatever it is."""
    address = leaf.lengths + slot * 8
    if slot < 0:
        address = leaf.beside_lengths - (slot + 1) * 8
    return load_int64(address)


def count_items(leaf: RaggedLeaf, slot: int) -> int:
    """Return the number of items of a slot's element, which is never more than the slot has."""
    if leaf.lengths == 0:
        return 1
    return max(0, min(find_length_of(leaf, slot), leaf.capacity))


def find_items(leaf: RaggedLeaf, slot: int) -> int:
    """Return the address of a slot."""
    if slot < 0:
        return leaf.beside - (slot + 1) * (leaf.capacity * leaf.item_nbytes)
    return leaf.source + slot * leaf.stride


def find_eight_slots(
    leaf: RaggedLeaf, picks: Picks, at: int, last: int
) -> tuple[int, int, int, int, int, int, int, int]:
    """Return the slots of eight numbers that follow each other, of none beyond the last one.

    All are loaded before one is looked at: memory is waited for once.
    """
    a, b, c, d = at, min(at + 1, last), min(at + 2, last), min(at + 3, last)
    e, f, g, h = min(at + 4, last), min(at + 5, last), min(at + 6, last), min(at + 7, last)
    if picks.vector != 0:
        a, b = load_int64(picks.vector + a * 8), load_int64(picks.vector + b * 8)
        c, d = load_int64(picks.vector + c * 8), load_int64(picks.vector + d * 8)
        e, f = load_int64(picks.vector + e * 8), load_int64(picks.vector + f * 8)
        g, h = load_int64(picks.vector + g * 8), load_int64(picks.vector + h * 8)
    else:
        a, b = picks.start + a * picks.step, picks.start + b * picks.step
        c, d = picks.start + c * picks.step, picks.start + d * picks.step
        e, f = picks.start + e * picks.step, picks.start + f * picks.step
        g, h = picks.start + g * picks.step, picks.start + h * picks.step
    if leaf.rows != 0:
        a, b = load_int64(leaf.rows + a * 8), load_int64(leaf.rows + b * 8)
        c, d = load_int64(leaf.rows + c * 8), load_int64(leaf.rows + d * 8)
        e, f = load_int64(leaf.rows + e * 8), load_int64(leaf.rows + f * 8)
        g, h = load_int64(leaf.rows + g * 8), load_int64(leaf.rows + h * 8)
    return a, b, c, d, e, f, g, h


def sum_items(leaf: RaggedLeaf, picks: Picks, begin: int, end: int) -> int:
    """Return the number of items of all elements from one number to another."""
    if leaf.lengths == 0:
        return end - begin
    total = 0
    at = begin
    while at < end:
        slots = find_eight_slots(leaf, picks, at, end - 1)
        n_left = end - at
        for number in range(8):
            slot = slots[number]
            slot = slot if slot < 0 else slot & _PLACE
            if number < n_left:
                total += max(0, min(find_length_of(leaf, slot), leaf.capacity))
        at += 8
    return total


def gather_ragged_on_grid(
    table: int,
    n_rows: int,
    vector: int,
    start: int,
    step: int,
    n_wide: int,
    n_narrow: int,
    wide_bits: int,
    narrow_bits: int,
    n_riders: int,
) -> None:
    """Gather all elements. Grid and block have one axis; `Teams` says who copies what.

    No thread waits for another: each sums up the lengths before its own elements. Any grid gathers
    everything.
    """
    share = find_share(Teams(n_wide, n_narrow, wide_bits, narrow_bits, n_riders))
    picks = Picks(vector, start, step)
    counted_leaf, counted, offset = -1, 0, 0
    at = share.row
    while at < share.n_leaves * n_rows:
        number = at
        leaf_number = share.first_leaf
        while number >= n_rows:  # at most as often as there are leaves: quicker than a division
            number -= n_rows
            leaf_number += 1
        leaf = read_ragged_leaf(table, leaf_number)
        if leaf_number != counted_leaf:
            counted_leaf, counted, offset = leaf_number, 0, 0
        offset += sum_items(leaf, picks, counted, number)
        counted = number
        slot = find_slot(leaf, pick(picks, number))
        n_items = count_items(leaf, slot)
        if leaf.offsets != 0 and leaf.begin == 0 and share.lane == 0:
            store_int64(leaf.offsets + number * 8, offset)
            if number == n_rows - 1:
                store_int64(leaf.offsets + n_rows * 8, offset + n_items)
        destination = leaf.destination + offset * leaf.item_nbytes + leaf.begin
        source = find_items(leaf, slot) + leaf.begin
        nbytes = max(0, min(n_items * leaf.item_nbytes - leaf.begin, leaf.nbytes))
        copy_share(
            destination, source, nbytes, destination | source, share.lane, share.lanes, share.mates
        )
        at += share.row_step


def has_wrong_length(leaf: RaggedLeaf, n_rows: int, picks: Picks) -> bool:
    """Return whether a length is none of a slot. No branch waits for a length."""
    is_wrong = False
    for number in range(n_rows):
        length = find_length_of(leaf, find_slot(leaf, pick(picks, number)))
        is_wrong |= (length < 0) | (length > leaf.capacity)
    return is_wrong


def count_before_line(leaf: RaggedLeaf, n_rows: int, picks: Picks) -> int:
    """Return how many elements come before the last ones that fill a line together, or more."""
    number, nbytes = n_rows, 0
    while number > 0 and nbytes < LINE:
        number -= 1
        nbytes += count_items(leaf, find_slot(leaf, pick(picks, number))) * leaf.item_nbytes
    return number


def copy_element(destination: int, source: int, nbytes: int) -> None:
    """Copy bytes on a CPU; the last word overlaps the one before."""
    at = 0
    while at + LINE <= nbytes:
        copy_4_of_16(destination + at, source + at, 16)
        at += LINE
    if nbytes < 16:
        copy_row(destination, source, nbytes)
    elif at < nbytes:
        while at + 16 < nbytes:
            copy_16(destination + at, source + at)
            at += 16
        copy_16(destination + nbytes - 16, source + nbytes - 16)


def pack_leaf(leaf: RaggedLeaf, n_rows: int, picks: Picks) -> None:
    """Gather the elements of one leaf on a CPU.

    Lengths differ from element to element: each branch for what is left of one would be guessed
    wrong. So whole lines are copied where they lie in its slot, and in what later elements
    overwrite: nothing behind the last element is written.
    """
    offset, slot_nbytes = 0, leaf.capacity * leaf.item_nbytes
    n_whole = count_before_line(leaf, n_rows, picks)
    for number in range(n_rows):
        if number + SLOTS_AHEAD < n_rows:
            later = find_items(leaf, find_slot(leaf, pick(picks, number + SLOTS_AHEAD)))
            for line in range(LINES_AHEAD):
                prefetch(later + line * LINE)
        slot = find_slot(leaf, pick(picks, number))
        n_own = count_items(leaf, slot)
        if leaf.offsets != 0:
            store_int64(leaf.offsets + number * 8, offset)
        destination = leaf.destination + offset * leaf.item_nbytes
        source, nbytes = find_items(leaf, slot), n_own * leaf.item_nbytes
        whole = (nbytes + LINE - 1) & -LINE
        if whole <= slot_nbytes and number < n_whole:
            for at in range(0, whole, LINE):
                copy_4_of_16(destination + at, source + at, 16)
        else:
            copy_element(destination, source, nbytes)
        offset += n_own
    if leaf.offsets != 0:
        store_int64(leaf.offsets + n_rows * 8, offset)


def gather_checked_elements(
    table: int,
    n_leaves: int,
    limit: int,
    writes: bool,
    vector: Integers,
    start: int,
    step: int,
    count: int,
) -> int:
    """Check all rows and lengths, then gather; return what was found.

    The index is a vector that is not empty, or else a range of `count` rows.
    """
    n_rows = max(vector.size, count)
    if n_rows != 0:
        lowest, highest = find_span(vector, start, step, count, limit)
        if lowest < 0 or highest >= limit:
            return OUT_OF_RANGE
    picks = Picks(address_of(vector), start, step)
    if writes:
        for number in range(n_leaves):
            leaf = read_ragged_leaf(table, number)
            if leaf.lengths != 0 and has_wrong_length(leaf, n_rows, picks):
                return WRONG_LENGTH
        for number in range(n_leaves):
            pack_leaf(read_ragged_leaf(table, number), n_rows, picks)
    return DONE


_SLOT_PARTS = (pick, read_ragged_leaf, find_slot, find_length_of, count_items, find_items)
DEVICE = DeviceEntry(
    "ragged",
    gather_ragged_on_grid,
    f"void({', '.join(['int64'] * 10)})",
    (*TEAM_PARTS, *_SLOT_PARTS, find_eight_slots, sum_items, *SHARE_PARTS),
)
_ON_CPU = CpuKernel(
    gather_checked_elements,
    "int64(int64, int64, int64, boolean, Array(int64, 1, 'C', readonly=True), int64, int64, int64)",
    parts=(
        *(copy_row, copy_element, is_inside, find_span, address_of, *_SLOT_PARTS),
        *(has_wrong_length, count_before_line, pack_leaf),
    ),
)


def _run(table: RaggedTable, index: Index, *, writes: bool) -> int | None:
    """Return what the compiled entry found; None where it does not take the index' type."""
    rows = (index, 0, 0, 0)
    if type(index) is range:
        rows = (NO_VECTOR, index.start, index.step, len(index))
    try:
        return _ON_CPU.compiled(table.address, table.n_leaves, table.n_rows, writes, *rows)
    except (TypeError, OverflowError):  # raised before anything runs
        return None
