"""Windows of consecutive steps in a ring of samples: which of them can be sampled. It draws none.

A window has the rows `0` to `burn_in + length` of one environment, the last of which has only an
observation. Row `burn_in` is the step that the window is named by, the first one to learn from.
The rows before it are the steps of the same episode before it; where the episode has not so many,
the first rows are padding. Places and numbers of steps are those of `transitions`.
"""

from typing import NamedTuple

from parllel.kernels.addresses import load_byte, load_int32, load_int64
from parllel.kernels.breaks import PARTS as BREAK_PARTS
from parllel.kernels.breaks import count_open, count_open_before, is_break
from parllel.kernels.transitions import NOT_GIVEN, Ring, RingTable

# What a window does where its episode ends: it is not drawn; it is filled up with padding; it goes
# on with the next episode.
STOP, PAD, CROSS = range(3)


class WindowTable(NamedTuple):
    """The form of all windows: an argument of the kernels, in memory one int64 after the other."""

    length: int  # rows to learn from
    burn_in: int  # rows before them
    stride: int  # steps whose number is a multiple of it begin the rows to learn from
    ends: int  # STOP, PAD or CROSS
    n_older: int  # frames that the longest stack has before its row's own


class Window(NamedTuple):
    """A window that may be there."""

    number: int  # of the step that it is named by
    row: int  # of the ring, where that is
    column: int
    is_sampleable: bool
    n_before: int  # steps of the episode that it has before row `burn_in`
    begins: bool  # whether an episode begins with the first of them
    n_steps: int  # steps to learn from, before padding; with CROSS 1 or 0: of the first one


def read_window_table(table: int) -> WindowTable:
    """Return the table at an address."""
    return WindowTable(
        load_int64(table),
        load_int64(table + 8),
        load_int64(table + 16),
        load_int64(table + 24),
        load_int64(table + 32),
    )


def row_beside(table: RingTable, row: int, steps: int) -> int:
    """Return the row some steps after a row, or before it; fewer than the ring has."""
    row += steps
    # A shifted sign is -1 below 0, else 0: many calls without a branch are compiled faster.
    row += table.n_rows & (row >> 63)
    row -= table.n_rows & ((table.n_rows - 1 - row) >> 63)
    return row


def place_beside(table: RingTable, row: int, column: int, steps: int) -> int:
    """Return the place some steps after a row, or before it; fewer than the ring has."""
    return row_beside(table, row, steps) * table.width + column


def is_learnable(table: RingTable, row: int, column: int) -> bool:
    """Return whether a step can be learned from: it is valid, and what follows it is known."""
    is_known = True
    if is_break(table, row, column):  # few steps: in a large ring each flag lies far away
        place = row * table.width + column
        is_known = load_byte(table.valid + place * table.valid_stride) != 0
        is_terminated = load_byte(table.terminated + place) != 0
        if is_terminated | (load_byte(table.truncated + place) != 0):
            slot = load_int32(table.final_slot + place * 4)
            is_known &= (slot >= 0) | (is_terminated & (slot == NOT_GIVEN))
    return is_known


def find_following(table: RingTable, row: int, column: int) -> int:
    """Return the code of the observation after a step; of its own one if nothing else is there."""
    place = row * table.width + column
    following = place + table.width
    if is_break(table, row, column):
        flags = load_byte(table.terminated + place) | load_byte(table.truncated + place)
        if flags != 0:
            slot = load_int32(table.final_slot + place * 4)
            following = -1 - slot if slot >= 0 else place
    return following


def may_begin(ring: Ring, form: WindowTable, number: int, row: int, column: int) -> bool:
    """Return whether a step is one by which windows are named, if one can be sampled there.

    Those are the multiples of the stride. Where windows don't go on with the next episode, so is
    the first step of each episode; and where they have no padding, so is the step by which a window
    ends with the last step of its episode that can be learned from.
    """
    table = ring.table
    is_found = number % form.stride == 0
    if not is_found and form.ends != CROSS and number > ring.first:
        is_found = is_break(table, row_beside(table, row, -1), column)
    if not is_found and form.ends == STOP and number + form.length <= ring.stop:
        is_found = is_break(table, row_beside(table, row, form.length - 1), column)
        if not is_found and number + form.length < ring.stop:
            is_found = not is_learnable(table, row_beside(table, row, form.length), column)
    return is_found


def find_window(ring: Ring, form: WindowTable, number: int, row: int, column: int) -> Window:
    """Return the window that is named by a step.

    It can't be sampled where one of its steps, or the one before the first of them, is not there
    (any more): nothing would tell whether an episode begins. The first step ever written begins
    one. Where windows stop with their episode, it must have all steps; else one to learn from.
    """
    table = ring.table
    n_left = ring.stop - number
    most = max(0, min(form.burn_in + 1, number - ring.first))
    n_before = count_open_before(table, row, column, most)
    is_known = (n_before < most) | (most == form.burn_in + 1) | (ring.first == 0)
    begins = (n_before < most) | (most < form.burn_in + 1)
    # Of a window that goes on with the next episode, the first step tells enough.
    most = max(0, min(1 if form.ends == CROSS else form.length, n_left))
    n_open = count_open(table, row, column, most)
    n_steps = n_open
    if n_open < most and is_learnable(table, row_beside(table, row, n_open), column):
        n_steps += 1
    is_whole = n_steps == form.length
    if form.ends == PAD:
        is_whole = (n_steps > 0) & ((n_open < most) | (most == form.length))
    elif form.ends == CROSS:
        is_whole = n_left >= form.length
        if is_whole and n_steps == 0:
            # The first step can't be learned from. The second one is in the window if the older
            # frames of its stack have room before it.
            has_second = form.length > form.n_older + 1
            is_whole = has_second and is_learnable(table, row_beside(table, row, 1), column)
    is_there = (number >= ring.first) & is_known & is_whole
    n_before = min(n_before, form.burn_in)
    return Window(number, row, column, is_there, n_before, begins, n_steps)


PARTS = (
    *BREAK_PARTS,
    read_window_table,
    row_beside,
    place_beside,
    is_learnable,
    find_following,
    may_begin,
    find_window,
)
