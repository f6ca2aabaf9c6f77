"""Gathers of the rows of windows, of all leaves at once: by the codes that `sequences` writes.

The frames of stacks are stored once, and so they are gathered: for each window the older frames of
its first stack, and then the newest frame of each row. Stack t of a window is the frames t to
t + n - 1 of these.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from parllel.kernels.addresses import copy_1, copy_4, copy_8, copy_16, load_int64, load_two_int64
from parllel.kernels.frames import Frames, count_before
from parllel.kernels.row_share import SHARE_PARTS, copy_share
from parllel.kernels.rows import copy_row
from parllel.kernels.sequences import BACK_BITS
from parllel.kernels.targets import CpuKernel, DeviceEntry
from parllel.kernels.teams import TEAM_PARTS, Teams, find_share

ENTRY_NBYTES = 12 * 8  # of a `WindowLeaf`, and nothing: pairs, which are loaded at once
_PLACE = (1 << BACK_BITS) - 1


class WindowLeaf(NamedTuple):
    """One leaf of a gather: where its rows lie, and where they are written.

    Output i is the row that code i names: for a code of 0 or more, the frame of a place, at
    `source + place * stride`, or one further back in its stack, as `Stacks` says it; for a code
    -1 - s below 0 row s beside the ring.
    """

    destination: int  # address of the first row to write; rows follow each other without gaps
    source: int  # address of the row at place 0
    stride: int  # bytes from a place to the next one
    nbytes: int  # of a row, or of one frame
    n_frames: int  # of a stack; 1 for plain rows
    n_columns: int  # places of a time step
    is_first: int  # address of the flag of place 0, of frames; 0 for plain rows
    blank: int  # address of the frame that fills a stack; 0 where the episode's first frame does
    codes: int  # address of int64 [n_rows]
    beside: int  # address of rows without gaps
    n_rows: int  # rows to write


class WindowRows:
    """The table of a gather of windows; it holds addresses only, and copies nothing.

    Args:
        leaves: for each leaf its addresses and sizes; at least one.

    Attributes:
        entries: int64 [n_leaves, 12], read-only: the format of the kernel.
    """

    __slots__ = ("entries",)

    def __init__(self, leaves: Sequence[WindowLeaf]) -> None:
        self.entries: npt.NDArray[np.int64] = np.array([(*leaf, 0) for leaf in leaves], np.int64)
        self.entries.flags.writeable = False


def read_window_leaf(table: int, number: int) -> WindowLeaf:
    """Return an entry of the table at an address."""
    at = table + number * ENTRY_NBYTES
    destination, source = load_two_int64(at)
    stride, nbytes = load_two_int64(at + 16)
    n_frames, n_columns = load_two_int64(at + 32)
    is_first, blank = load_two_int64(at + 48)
    codes, beside = load_two_int64(at + 64)
    sizes = stride, nbytes, n_frames, n_columns
    return WindowLeaf(
        destination, source, *sizes, is_first, blank, codes, beside, load_int64(at + 80)
    )


def leaf_bits(leaf: WindowLeaf) -> int:
    """Return a number whose low bits are 0 as far as they are in every row's address."""
    bits = leaf.destination | leaf.source | leaf.stride | leaf.nbytes
    return bits | leaf.blank | leaf.beside


def find_older_frame(leaf: WindowLeaf, place: int, back: int) -> int:
    """Return the address of a frame of the stack of a place, so many back; the oldest at most."""
    sizes = leaf.stride, leaf.nbytes, leaf.n_frames, leaf.n_columns
    frames = Frames(0, leaf.source, *sizes, leaf.is_first, leaf.blank, 0, 0, 0, 1)
    before = count_before(frames, place)
    back = min(back, leaf.n_frames - 1)
    if back > before and leaf.blank != 0:
        return leaf.blank
    return leaf.source + (place - min(back, before) * leaf.n_columns) * leaf.stride


def find_coded_row(leaf: WindowLeaf, number: int) -> int:
    """Return the address of the row that a leaf's code names."""
    code = load_int64(leaf.codes + number * 8)
    if code < 0:
        return leaf.beside - (code + 1) * leaf.nbytes
    if code > _PLACE and leaf.n_frames > 1:
        return find_older_frame(leaf, code & _PLACE, code >> BACK_BITS)
    return leaf.source + (code & _PLACE) * leaf.stride


def gather_windows_on_grid(
    table: int,
    n_wide: int,
    n_narrow: int,
    wide_bits: int,
    narrow_bits: int,
    n_riders: int,
) -> None:
    """Gather all rows. Grid and block have one axis; `Teams` says who copies what.

    Any grid gathers everything. The leaves have different numbers of rows, which are counted
    through, leaf after leaf.
    """
    share = find_share(Teams(n_wide, n_narrow, wide_bits, narrow_bits, n_riders))
    number, leaf_number = share.row, share.first_leaf
    while leaf_number < share.first_leaf + share.n_leaves:
        leaf = read_window_leaf(table, leaf_number)
        if number >= leaf.n_rows:
            number -= leaf.n_rows
            leaf_number += 1
        else:
            destination = leaf.destination + number * leaf.nbytes
            source = find_coded_row(leaf, number)
            bits = leaf_bits(leaf)
            copy_share(destination, source, leaf.nbytes, bits, share.lane, share.lanes, share.mates)
            number += share.row_step


def gather_window_words(leaf: WindowLeaf) -> None:
    """Gather rows of 1, 4, 8 or 16 bytes on a CPU. The compiler makes a loop for each size."""
    for number in range(leaf.n_rows):
        destination = leaf.destination + number * leaf.nbytes
        source = find_coded_row(leaf, number)
        if leaf.nbytes == 1:
            copy_1(destination, source)
        elif leaf.nbytes == 4:
            copy_4(destination, source)
        elif leaf.nbytes == 8:
            copy_8(destination, source)
        else:
            copy_16(destination, source)


def gather_windows_in_turn(table: int, n_leaves: int) -> None:
    """Gather all rows on a CPU, leaf after leaf."""
    for leaf_number in range(n_leaves):
        leaf = read_window_leaf(table, leaf_number)
        if leaf.nbytes in (1, 4, 8, 16):
            gather_window_words(leaf)
        else:
            for number in range(leaf.n_rows):
                destination = leaf.destination + number * leaf.nbytes
                copy_row(destination, find_coded_row(leaf, number), leaf.nbytes)


_PARTS = (count_before, read_window_leaf, leaf_bits, find_older_frame, find_coded_row)
DEVICE = DeviceEntry(
    "gather_windows",
    gather_windows_on_grid,
    f"void({', '.join(['int64'] * 6)})",
    (*TEAM_PARTS, *_PARTS, *SHARE_PARTS),
)
# Compiled, it checks nothing.
ON_CPU = CpuKernel(
    gather_windows_in_turn,
    "void(int64, int64)",
    parts=(copy_row, *_PARTS, gather_window_words),
)
