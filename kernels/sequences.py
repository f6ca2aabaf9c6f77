"""Draws of windows of consecutive steps (`window_search`) from a ring of samples.

What a window has is written as a code for each row, by which `windows` gathers all leaves: the
place of a step in the ring, and how many frames further back a stack's frame lies; or a number
below 0.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from parllel.kernels.addresses import load_byte, load_int64, store_int64, store_uint8
from parllel.kernels.breaks import count_open, locate_breaks, prefetch_flags
from parllel.kernels.instructions import prefetch
from parllel.kernels.philox import draw_below
from parllel.kernels.targets import CpuKernel, DeviceEntry, cuda
from parllel.kernels.transitions import (
    N_TRIES,
    RING,
    Ring,
    RingTable,
    Seed,
    count_draw,
    draw_words,
    read_ring,
    read_seed,
)
from parllel.kernels.transitions import PARTS as TRANSITION_PARTS
from parllel.kernels.window_search import (
    CROSS,
    Window,
    WindowTable,
    find_following,
    find_window,
    is_learnable,
    may_begin,
    place_beside,
    read_window_table,
    row_beside,
)
from parllel.kernels.window_search import PARTS as SEARCH_PARTS

# A code: the place of a step below this bit, and above it the number of frames back in its stack.
BACK_BITS = 48
NO_STEP = -1  # of leaves other than observations: a row of zeros stands there


class Windows(NamedTuple):
    """Addresses of what is written for each window of a minibatch, [..., n_items]: an argument."""

    identity: int  # int64 [n_items]. number * width + column of row `burn_in`; -1 for no window
    observed: (
        int  # int64 [n_older + rows + 1, n_items]. Codes of observations, from older frames on
    )
    steps: int  # int64 [rows, n_items]. Codes of all other leaves
    initial: int  # int64 [n_items]. The place of the first row that is a step
    is_first: int  # uint8 [rows + 1, n_items]
    mask: int  # uint8 [rows, n_items]


def read_windows(table: int) -> Windows:
    """Return the table at an address."""
    return Windows(
        load_int64(table),
        load_int64(table + 8),
        load_int64(table + 16),
        load_int64(table + 24),
        load_int64(table + 32),
        load_int64(table + 40),
    )


def write_observed(
    out: Windows, form: WindowTable, item: int, n_items: int, at: int, code: int, is_first: bool
) -> None:
    """Write a row's code of observations, and whether an episode begins with it."""
    store_int64(out.observed + ((form.n_older + at) * n_items + item) * 8, code)
    store_uint8(out.is_first + at * n_items + item, int(is_first))


def write_step(out: Windows, item: int, n_items: int, at: int, code: int, mask: bool) -> None:
    """Write a row's code of all other leaves, and whether to learn from it."""
    store_int64(out.steps + (at * n_items + item) * 8, code)
    store_uint8(out.mask + at * n_items + item, int(mask))


def write_before(
    ring: Ring, form: WindowTable, found: Window, out: Windows, item: int, n_items: int
) -> None:
    """Write the older frames of the first stack, the padding in front, and the burn-in."""
    place = place_beside(ring.table, found.row, found.column, -found.n_before)
    begin = form.burn_in - found.n_before
    store_int64(out.initial + item * 8, place)
    for at in range(-form.n_older, begin):
        code = place + ((begin - at) << BACK_BITS)
        store_int64(out.observed + ((form.n_older + at) * n_items + item) * 8, code)
    for at in range(begin):
        store_uint8(out.is_first + at * n_items + item, 0)
        write_step(out, item, n_items, at, NO_STEP, False)
    for age in range(found.n_before):
        at = begin + age
        code = place_beside(ring.table, found.row, found.column, age - found.n_before)
        write_observed(out, form, item, n_items, at, code, found.begins and age == 0)
        write_step(out, item, n_items, at, code, False)


def write_within(
    ring: Ring, form: WindowTable, found: Window, out: Windows, item: int, n_items: int
) -> None:
    """Write the rows to learn from, of one episode, and padding behind its end."""
    table = ring.table
    row = found.row
    for age in range(found.n_steps):
        row = row_beside(table, found.row, age)
        place = row * table.width + found.column
        is_first = found.begins and found.n_before == 0 and age == 0
        write_observed(out, form, item, n_items, form.burn_in + age, place, is_first)
        write_step(out, item, n_items, form.burn_in + age, place, True)
    following = find_following(table, row, found.column)
    for age in range(found.n_steps, form.length + 1):
        write_observed(out, form, item, n_items, form.burn_in + age, following, False)
        if age < form.length:
            write_step(out, item, n_items, form.burn_in + age, NO_STEP, False)


def row_after(table: RingTable, row: int, n_left: int) -> int:
    """Return the row of the next step; after the newest one, 0 steps are left: it may be `n_rows`.

    There the observation lies that is behind the ring.
    """
    return row + 1 if row + 1 < table.n_rows or n_left == 0 else 0


def write_crossing(
    ring: Ring, form: WindowTable, found: Window, out: Windows, item: int, n_items: int
) -> None:
    """Write the rows to learn from, whatever episodes they belong to.

    Where an episode was cut off, its final observation gets a row of its own. Before an episode
    begins there are as many rows as its first stack has older frames.
    """
    table, row, n_left = ring.table, found.row, ring.stop - found.number
    at, last = form.burn_in, form.burn_in + form.length
    is_first = found.begins & (found.n_before == 0)
    while at <= last:
        n_open = count_open(table, row, found.column, last - at)
        for _ in range(n_open):
            place = row * table.width + found.column
            write_observed(out, form, item, n_items, at, place, is_first)
            write_step(out, item, n_items, at, place, True)
            is_first = False
            at += 1
            n_left -= 1
            row = row_after(table, row, n_left)
        place = row * table.width + found.column
        write_observed(out, form, item, n_items, at, place, is_first)
        if at < last:
            write_step(out, item, n_items, at, place, is_learnable(table, row, found.column))
            following = find_following(table, row, found.column)
            is_over = load_byte(table.terminated + place) != 0
            is_ended = is_over | (load_byte(table.truncated + place) != 0)
            # An episode that is over has no row for what follows it, but the window's last one.
            is_added = (is_ended & (at + 1 == last)) | ((following < 0) & (not is_over))
            n_left -= 1
            row = row_after(table, row, n_left)
            place = row * table.width + found.column
            n_older = form.n_older
            is_first = True
            while at < last and (is_added or n_older > 0):
                at += 1
                code = following if is_added else place + (n_older << BACK_BITS)
                write_observed(out, form, item, n_items, at, code, False)
                if at < last:
                    write_step(out, item, n_items, at, NO_STEP, False)
                if is_added:
                    is_added = False
                else:
                    n_older -= 1
        at += 1


def write_window(
    ring: Ring, form: WindowTable, found: Window, out: Windows, item: int, n_items: int
) -> None:
    """Write a window; one that can't be sampled has no step to learn from, and identity -1."""
    identity = found.number * ring.table.width + found.column
    store_int64(out.identity + item * 8, identity if found.is_sampleable else -1)
    write_before(ring, form, found, out, item, n_items)
    if form.ends == CROSS and found.is_sampleable:
        write_crossing(ring, form, found, out, item, n_items)
    else:
        write_within(ring, form, found, out, item, n_items)


def draw_window(
    ring: Ring, form: WindowTable, seed: Seed, drawn: int, out: Windows, item: int, n_items: int
) -> bool:
    """Write a window that can be sampled, each with the same probability.

    Steps are drawn until one is found, as `transitions.draw_transition` does it. If none can be
    sampled, the item is a window without steps, and False is returned.

    Args:
        ring, form: what to draw from.
        seed: key and counter of the minibatch.
        drawn: number of the step to try first, counted from the oldest that is there.
        out: where windows are written.
        item: index of the window in the minibatch.
        n_items: number of windows.
    """
    width, n_drawn_from = ring.table.width, (ring.stop - ring.first) * ring.table.width
    nothing = Window(ring.first, ring.first % ring.table.n_rows, 0, False, 0, False, 0)
    found = nothing
    tried = 0
    while tried < N_TRIES + n_drawn_from and not found.is_sampleable:
        number, column = ring.first + drawn // width, drawn % width
        row = number % ring.table.n_rows
        if may_begin(ring, form, number, row, column):
            found = find_window(ring, form, number, row, column)
        tried += 1
        if not found.is_sampleable and tried < N_TRIES:
            drawn = draw_below(draw_words(seed, item, tried), n_drawn_from)
        elif not found.is_sampleable:
            drawn = drawn + 1 if drawn + 1 < n_drawn_from else 0
    if not found.is_sampleable:
        found = nothing
    write_window(ring, form, found, out, item, n_items)
    return found.is_sampleable


def draw_windows_on_grid(
    ring_table: int, state: int, discount: np.float32, form: int, n_items: int, windows: int
) -> None:
    """Draw all windows: one thread for each, on a grid with one axis."""
    ring, seed = read_ring(ring_table, state, discount), read_seed(state)
    shape, out = read_window_table(form), read_windows(windows)
    n_threads = cuda.gridDim.x * cuda.blockDim.x
    item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_items:
        limit = (ring.stop - ring.first) * ring.table.width
        drawn = draw_below(draw_words(seed, item, 0), limit)
        draw_window(ring, shape, seed, drawn, out, item, n_items)
        item += n_threads
    count_draw(state, n_threads)


def prefetch_breaks(ring: Ring, form: WindowTable, drawn: int) -> None:
    """Let a CPU bring the bits by which the window is found that a step names."""
    table = ring.table
    row, column = (ring.first + drawn // table.width) % table.n_rows, drawn % table.width
    for steps in (-form.burn_in - 1, 0, form.length):
        prefetch(locate_breaks(table, row_beside(table, row, steps), column))


def prefetch_ends(ring: Ring, form: WindowTable, drawn: int) -> None:
    """Let a CPU bring the flags of the breaks in the window that a step names."""
    table, at = ring.table, 0
    row, column = (ring.first + drawn // table.width) % table.n_rows, drawn % table.width
    while at < form.length:
        at += count_open(table, row_beside(table, row, at), column, form.length - at)
        if at < form.length:
            prefetch_flags(table, place_beside(table, row, column, at))
        at += 1


def draw_windows_in_turn(
    ring_table: int,
    state: int,
    discount: np.float32,
    form: int,
    n_items: int,
    windows: int,
    scratch: npt.NDArray[np.int64],
) -> int:
    """Draw all windows on a CPU; return for how many there was none that can be sampled.

    A large ring lies in memory that takes long to answer. So it is asked for all windows at once.
    """
    ring, seed = read_ring(ring_table, state, discount), read_seed(state)
    shape, out = read_window_table(form), read_windows(windows)
    for item in range(n_items):
        limit = (ring.stop - ring.first) * ring.table.width
        scratch[item] = draw_below(draw_words(seed, item, 0), limit)
        prefetch_breaks(ring, shape, scratch[item])
    for item in range(n_items):
        prefetch_ends(ring, shape, scratch[item])
    n_missing = 0
    for item in range(n_items):
        if not draw_window(ring, shape, seed, scratch[item], out, item, n_items):
            n_missing += 1
    count_draw(state, 1)
    return n_missing


PARTS = (
    *TRANSITION_PARTS,
    *SEARCH_PARTS,
    read_windows,
    write_observed,
    write_step,
    write_before,
    write_within,
    row_after,
    write_crossing,
    write_window,
)
DEVICE = DeviceEntry(
    "draw_windows",
    draw_windows_on_grid,
    f"void({RING}, int64, int64, int64)",
    (*PARTS, draw_window),
)
# Compiled, it checks nothing.
ON_CPU = CpuKernel(
    draw_windows_in_turn,
    f"int64({RING}, int64, int64, int64, Array(int64, 1, 'C'))",
    parts=(*PARTS, draw_window, prefetch_flags, prefetch_breaks, prefetch_ends),
)
