"""Windows of consecutive steps in a ring of samples: which of them can be sampled. It draws none.

A window has the rows `0` to `burn_in + length` of one environment, the last of which has only an
observation. Row `burn_in` is the step that the window is named by, the first one to learn from.
The rows before it are the steps of the same episode before it; where the episode has not so many,
the first rows are padding. Places and numbers of steps are those of `transitions`.
"""

from typing import NamedTuple

from parllel.kernels.addresses import load_byte, load_int32, load_int64
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


def is_open(table: RingTable, place: int) -> int:
    """Return 1 where a step is valid and its episode goes on after it, else 0; without a branch."""
    flags = load_byte(table.terminated + place) | load_byte(table.truncated + place)
    return (1 - min(flags, 1)) * min(load_byte(table.valid + place * table.valid_stride), 1)


def place_beside(table: RingTable, row: int, column: int, steps: int) -> int:
    """Return the place some steps after a row, or before it; fewer than the ring has."""
    row += steps
    # A shifted sign is -1 below 0, else 0: many calls without a branch are compiled faster.
    row += table.n_rows & (row >> 63)
    row -= table.n_rows & ((table.n_rows - 1 - row) >> 63)
    return row * table.width + column


def count_open(table: RingTable, row: int, column: int, most: int, direction: int) -> int:
    """Return how many steps are open, one after the other from a row on, and not more than `most`.

    Args:
        table: the ring.
        row, column: where the first step is; row -1 is the last one.
        most: how many steps are looked at.
        direction: 1 to go on in time, -1 to go back.
    """
    count, at = 0, 0
    is_same = 1  # whether all steps up to here are open
    last = most - 1
    while at < most and is_same != 0:
        # Four steps are loaded before one is looked at: memory is waited for once. Those that are
        # too many are the last one. No place depends on what was loaded, so a CPU loads ahead.
        b, c, d = min(at + 1, last), min(at + 2, last), min(at + 3, last)
        is_a = is_open(table, place_beside(table, row, column, direction * at))
        is_b = is_open(table, place_beside(table, row, column, direction * b)) & is_a
        is_c = is_open(table, place_beside(table, row, column, direction * c)) & is_b
        is_same = is_open(table, place_beside(table, row, column, direction * d)) & is_c
        count += is_a + is_b + is_c + is_same
        at += 4
    return min(count, most)


def is_learnable(table: RingTable, place: int) -> bool:
    """Return whether a step can be learned from: it is valid, and what follows it is known."""
    is_terminated = load_byte(table.terminated + place) != 0
    is_ended = is_terminated | (load_byte(table.truncated + place) != 0)
    is_known = load_byte(table.valid + place * table.valid_stride) != 0
    if is_known and is_ended:  # few steps: in a large ring each slot lies far away
        slot = load_int32(table.final_slot + place * 4)
        is_known = (slot >= 0) | (is_terminated & (slot == NOT_GIVEN))
    return is_known


def find_following(table: RingTable, place: int) -> int:
    """Return the code of the observation after a step; of its own one if nothing else is there."""
    flags = load_byte(table.terminated + place) | load_byte(table.truncated + place)
    following = place + table.width
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
        before = place_beside(table, row, column, -1)
        is_found = is_open(table, before) == 0
    if not is_found and form.ends == STOP and number + form.length <= ring.stop:
        last = place_beside(table, row, column, form.length - 1)
        is_found = is_open(table, last) == 0
        if not is_found and number + form.length < ring.stop:
            behind = place_beside(table, row, column, form.length)
            is_found = not is_learnable(table, behind)
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
    n_before = count_open(table, row - 1, column, most, -1)
    is_known = (n_before < most) | (most == form.burn_in + 1) | (ring.first == 0)
    begins = (n_before < most) | (most < form.burn_in + 1)
    # Of a window that goes on with the next episode, the first step tells enough.
    most = max(0, min(1 if form.ends == CROSS else form.length, n_left))
    n_open = count_open(table, row, column, most, 1)
    n_steps = n_open
    if n_open < most and is_learnable(table, place_beside(table, row, column, n_open)):
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
            is_whole = has_second and is_learnable(table, place_beside(table, row, column, 1))
    is_there = (number >= ring.first) & is_known & is_whole
    n_before = min(n_before, form.burn_in)
    return Window(number, row, column, is_there, n_before, begins, n_steps)


PARTS = (
    read_window_table,
    is_open,
    place_beside,
    count_open,
    is_learnable,
    find_following,
    may_begin,
    find_window,
)
