"""Gathers of stacks from single frames: the kernel, its two entries, the check before it.

A frame is stored once. The stack of a row is made up of its frame and those of the steps before
it, as far as they belong to the same episode; before an episode's beginning the stack is filled
with the episode's first frame, or with a frame that is given. One launch serves all leaves of a
tree: a leaf of plain rows is one of stacks of 1 frame.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from parllel.kernels.memory import load_byte, load_int64
from parllel.kernels.row_index import Index, Integers, as_index, check_inside
from parllel.kernels.rows import (
    DONE,
    NO_VECTOR,
    OUT_OF_RANGE,
    Leaf,
    Picks,
    address_of,
    copy_row,
    copy_words,
    find_span,
    is_inside,
    pick,
)
from parllel.kernels.stack_table import StackTable
from parllel.kernels.targets import DeviceEntry, cuda, twin

ENTRY_NBYTES = 8 * 8  # of StackTable's integers for one leaf

# On a CPU. Small enough that the frames which an observation and the next one share are read from
# a cache the second time: 0.75 of the time of leaf after leaf (bench/bench_frames.py).
ROWS_AT_ONCE = 8


def gather_stacks(table: StackTable, index: Index, *, out_address: int = 0) -> None:
    """Gather stacks in host memory, of all leaves: that of row index[i] to output i.

    output[leaf][i, k] = frame[leaf][row - min(n - 1 - k, before) * n_columns],  row = index[i]

    where k counts the n frames of a stack, the oldest first, and `before` the frames of the
    episode before this one. With a blank frame, that is output i, k where n - 1 - k > before.

    Runs in the calling thread, without the GIL. An index that is neither a range nor a contiguous
    int64 vector is converted, which allocates. The first call compiles, or loads what an earlier
    process compiled.

    Args:
        table: where the frames lie; in memory that this process can read and write. The outputs
            hold as many stacks as the index has rows.
        index: range, or integers [n], in memory apart from the outputs.
        out_address: added to the destination of each leaf.

    Raises:
        TypeError: the index is no range and no array of integers.
        ValueError: it has more axes than one.
        IndexError: a row is outside a leaf. Nothing has been written then.
    """
    if _run(table, index, out_address, writes=True) != DONE:
        # The entry may have refused an index of another dtype only.
        outcome = _run(table, _checked(table, index), out_address, writes=True)
        assert outcome == DONE, "the compiled entry refuses what no check finds wrong"


def check_stacks(table: StackTable, index: Index) -> None:
    """Raise what `gather_stacks` would raise, and gather nothing: a GPU checks no index."""
    if _run(table, index, 0, writes=False) != DONE:
        _checked(table, index)


def _checked(table: StackTable, index: object) -> range | Integers:
    rows = as_index("index", index)
    check_inside("index", rows, table.n_rows)
    return rows


class Frames(NamedTuple):
    """An entry of the table; `Stacks` says what it means."""

    destination: int
    source: int
    stride: int
    nbytes: int
    n_frames: int
    n_columns: int
    is_first: int
    blank: int


def read_frames(table: int, number: int, out: int) -> Frames:
    """Return an entry of the table at an address, with `out` added to its destination."""
    at = table + number * ENTRY_NBYTES
    return Frames(
        out + load_int64(at),
        load_int64(at + 8),
        load_int64(at + 16),
        load_int64(at + 24),
        load_int64(at + 32),
        load_int64(at + 40),
        load_int64(at + 48),
        load_int64(at + 56),
    )


def count_before(frames: Frames, row: int) -> int:
    """Return how many earlier frames of the same episode belong to a row's stack."""
    count = 0
    at = frames.is_first + row
    while count < frames.n_frames - 1 and load_byte(at) == 0:
        at -= frames.n_columns
        count += 1
    return count


def find_frame(frames: Frames, row: int, before: int, place: int) -> int:
    """Return the address of the frame at a place of a row's stack; place 0 is the oldest."""
    back = frames.n_frames - 1 - place
    if back > before:
        if frames.blank != 0:
            return frames.blank
        back = before
    return frames.source + (row - back * frames.n_columns) * frames.stride


def gather_on_grid(table: int, out: int, n_rows: int, vector: int, start: int, step: int) -> None:
    """Gather all stacks. Grid (groups of frames, leaves), block (lanes of a frame, a group).

    Any grid gathers everything: groups go on where the grid ends.
    """
    frames = read_frames(table, cuda.blockIdx.y, out)
    bits = frames.destination | frames.nbytes | frames.source | frames.stride | frames.blank
    number = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    while number < n_rows * frames.n_frames:
        place = 0
        at = number
        while at >= n_rows:  # at most as often as a stack has frames: quicker than a division
            at -= n_rows
            place += 1
        row = pick(Picks(vector, start, step), at)
        source = find_frame(frames, row, count_before(frames, row), place)
        destination = frames.destination + (at * frames.n_frames + place) * frames.nbytes
        lane, lanes = cuda.threadIdx.x, cuda.blockDim.x
        copy_row(destination, source, frames.nbytes, bits, lane, lanes)
        number += cuda.gridDim.x * cuda.blockDim.y


def gather_part(frames: Frames, begin: int, n_rows: int, picks: Picks) -> None:
    """Gather some stacks of one leaf on a CPU: `n_rows` from number `begin` on."""
    nbytes = frames.nbytes
    destination = frames.destination + begin * frames.n_frames * nbytes
    vector = picks.vector + begin * 8 if picks.vector != 0 else 0
    part = Picks(vector, picks.start + begin * picks.step, picks.step)
    if frames.n_frames == 1 and nbytes in (1, 4, 8, 16):
        leaf = Leaf(destination, nbytes, frames.source, frames.stride, nbytes)
        copy_words(leaf, Picks(0, 0, 1), part, n_rows)
    else:
        for at in range(n_rows):
            row = pick(part, at)
            before = count_before(frames, row)
            for place in range(frames.n_frames):
                source = find_frame(frames, row, before, place)
                copy_row(destination, source, nbytes, 0, 0, 1)
                destination += nbytes


def gather_in_turn(table: int, n_leaves: int, out: int, n_rows: int, picks: Picks) -> None:
    """Gather all stacks on a CPU: some rows of all leaves, then the next rows."""
    for begin in range(0, n_rows, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, n_rows - begin)
        for number in range(n_leaves):
            gather_part(read_frames(table, number, out), begin, count, picks)


def gather_checked(
    table: int,
    n_leaves: int,
    out: int,
    limit: int,
    writes: bool,
    vector: Integers,
    start: int,
    step: int,
    count: int,
) -> int:
    """Check that all rows are in [0, limit), then gather; return what was found.

    The index is a vector that is not empty, or else a range of `count` rows.
    """
    n_rows = max(vector.size, count)
    if n_rows == 0:
        return DONE
    lowest, highest = find_span(vector, start, step, count, limit)
    if lowest < 0 or highest >= limit:
        return OUT_OF_RANGE
    if writes:
        gather_in_turn(table, n_leaves, out, n_rows, Picks(address_of(vector), start, step))
    return DONE


PARTS = (
    pick,
    copy_row,
    copy_words,
    is_inside,
    find_span,
    address_of,
    read_frames,
    count_before,
    find_frame,
    gather_part,
    gather_in_turn,
)
DEVICE = DeviceEntry(gather_on_grid, "void(int64, int64, int64, int64, int64, int64)", PARTS)


@functools.cache
def _compiled_entry() -> Callable[..., int]:
    index = "Array(int64, 1, 'C', readonly=True), int64, int64, int64"
    signature = f"int64(int64, int64, int64, int64, boolean, {index})"
    return twin(gather_checked, signature, parts=PARTS)


def _run(table: StackTable, index: Index, out_address: int, *, writes: bool) -> int | None:
    """Return what the compiled entry found; None where it does not take the index' type."""
    rows: tuple[Any, ...] = (index, 0, 0, 0)  # Any: whatever a caller gives
    if type(index) is range:
        rows = (NO_VECTOR, index.start, index.step, len(index))
    arguments = (table.address, len(table.entries), out_address, table.n_rows, writes, *rows)
    try:
        return _compiled_entry()(*arguments)
    except (TypeError, OverflowError):  # raised before anything runs
        return None
