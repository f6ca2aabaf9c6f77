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
    n_steps: int  # steps to learn from, until a window that does not go on has padding


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
    row -= table.n_rows if row >= table.n_rows else 0
    row += table.n_rows if row < 0 else 0
    return row * table.width + column


def count_open(table: RingTable, row: int, column: int, most: int, direction: int) -> int:
    """Return how many steps are open, one after the other from a row on, and not more than `most`.

    Args:
        table: the ring.
        row, column: where the first step is.
        most: how many steps are looked at.
        direction: 1 to go on in time, -1 to go back.
    """
    count = 0
    is_same = 1  # whether all steps up to here are open
    while count < most and is_same != 0:
        # Four steps are loaded before one is looked at: memory is waited for once. Those that are
        # too many are the last one.
        last = most - 1 - count
        found = (
            is_open(table, place_beside(table, row, column, direction * count)),
            is_open(table, place_beside(table, row, column, direction * (count + min(1, last)))),
            is_open(table, place_beside(table, row, column, direction * (count + min(2, last)))),
            is_open(table, place_beside(table, row, column, direction * (count + min(3, last)))),
        )
        for each in found:
            is_same &= each
            count += is_same
    return min(count, most)


def is_learnable(table: RingTable, place: int) -> bool:
    """Return whether a step can be learned from: it is valid, and what follows it is known."""
    is_terminated = load_byte(table.terminated + place) != 0
    is_ended = is_terminated or load_byte(table.truncated + place) != 0
    slot = load_int32(table.final_slot + place * 4)
    is_known = not is_ended or slot >= 0 or (is_terminated and slot == NOT_GIVEN)
    return is_known and load_byte(table.valid + place * table.valid_stride) != 0


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
    most = max(0, min(form.burn_in + 1, number - ring.first))
    before = row - 1 if row > 0 else table.n_rows - 1
    n_before = count_open(table, before, column, most, -1)
    is_known = n_before < most or most == form.burn_in + 1 or ring.first == 0
    begins = n_before < most or most < form.burn_in + 1
    n_left = ring.stop - number
    most = max(0, min(form.length, n_left))
    n_open = count_open(table, row, column, most, 1)
    n_steps = n_open
    if n_open < most and is_learnable(table, place_beside(table, row, column, n_open)):
        n_steps += 1
    is_whole = n_steps == form.length
    if form.ends == PAD:
        is_whole = n_steps > 0 and (n_open < most or most == form.length)
    elif form.ends == CROSS and n_steps == 0:
        # The first step can't be learned from. The second one is in the window if the older frames
        # of its stack have room before it.
        has_second = form.length > form.n_older + 1
        is_whole = has_second and is_learnable(table, place_beside(table, row, column, 1))
        is_whole = is_whole and n_left >= form.length
    elif form.ends == CROSS:
        is_whole = n_left >= form.length
    is_there = number >= ring.first and is_known and is_whole
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
