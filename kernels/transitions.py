"""Transitions of n steps in a ring of samples: where they end, what they earn, and random draws.

A step of environment `column` has a number that counts from the first step ever written, and lies
in row `number % n_rows` of the ring. In every leaf, T and B taken together, its place is
`row * width + column`.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from parllel.kernels.addresses import (
    add_int64,
    exchange_int64,
    load_byte,
    load_float32,
    load_int32,
    load_int64,
    store_float32,
    store_int64,
    store_uint8,
)
from parllel.kernels.philox import Key, Words, draw_below, philox
from parllel.kernels.targets import CpuKernel, DeviceEntry, cuda

# Random draws before all places are looked at in turn. Where one in a hundred can be sampled, 1
# draw in 20,000 comes to that.
N_TRIES = 1000


# Slots of steps that have no final observation: it was not given; or their own was overwritten.
NOT_GIVEN = -1
REFUSED = -2


class RingTable(NamedTuple):
    """The part of a ring that never changes: addresses of its leaves, [n_rows, width], and sizes.

    In memory, one int64 after the other: the first argument of the kernels.
    """

    reward: int  # float32
    terminated: int  # uint8
    truncated: int  # uint8
    valid: int  # uint8; a single flag that is set, where `valid_stride` is 0
    final_slot: int  # int32. Where an episode ended: of its final observation; NOT_GIVEN, REFUSED
    breaks: int  # int64 [integers, width], bits of steps (`breaks`); 0 where they are not kept
    valid_stride: int
    n_rows: int
    width: int
    n_steps: int


class Ring(NamedTuple):
    """A ring, and which of its steps hold samples."""

    table: RingTable
    first: int  # number of the oldest step that is there
    stop: int  # number of the step that will be written next
    discount: np.float32


class Seed(NamedTuple):
    """Key and counter of the random numbers of one minibatch."""

    key_a: int
    key_b: int
    number: int  # of the minibatch, among all that are drawn with the key


class DrawState(NamedTuple):
    """What changes between draws: in memory, so that draws of a captured graph see the change.

    One int64 after the other: an argument of the kernels. The weights' exponent, a float32, lies
    behind these.
    """

    first: int  # number of the oldest step that is there
    stop: int  # number of the step that will be written next
    key_a: int
    key_b: int
    number: int  # of the next minibatch; a draw counts it up
    n_counted: int  # threads of the launch under way that have counted; 0 between launches
    smallest: int  # priority of the latest minibatch, packed (`sum_tree.pack_smallest`)


BETA = len(DrawState._fields) * 8  # where in the state the weights' exponent lies
STATE_NUMBERS = len(DrawState._fields) + 1  # int64 numbers that the state takes
_FIRST, _STOP, _KEY_A, _KEY_B, _NUMBER, _N_COUNTED, SMALLEST = range(0, BETA, 8)


class Transitions(NamedTuple):
    """Addresses of what is written for each transition of a minibatch, [n_items].

    In memory, one int64 after the other: an argument of the kernels.
    """

    identity: int  # int64. number * width + column, which names a transition for ever
    row: int  # int64. The place of its first step
    next_row: int  # int64. The place of its next observation; below 0, -1 - slot of a final one
    n_step_return: int  # float32
    n_step_discount: int  # float32
    terminated: int  # uint8
    truncated: int  # uint8


class NStepSpan(NamedTuple):
    """The steps of one transition: n_steps, or fewer where the episode ends."""

    is_sampleable: bool
    last: int  # the place of the last step
    next_row: int
    total: np.float32  # discounted sum of rewards
    factor: np.float32  # discount ** number of steps


def read_ring_table(table: int) -> RingTable:
    """Return the table at an address."""
    return RingTable(
        load_int64(table),
        load_int64(table + 8),
        load_int64(table + 16),
        load_int64(table + 24),
        load_int64(table + 32),
        load_int64(table + 40),
        load_int64(table + 48),
        load_int64(table + 56),
        load_int64(table + 64),
        load_int64(table + 72),
    )


def read_ring(table: int, state: int, discount: np.float32) -> Ring:
    """Return the ring of a table and of a state, which are given by their addresses."""
    return Ring(read_ring_table(table), load_int64(state), load_int64(state + _STOP), discount)


def read_seed(state: int) -> Seed:
    """Return the key, and the number of the minibatch that is drawn next."""
    return Seed(load_int64(state + _KEY_A), load_int64(state + _KEY_B), load_int64(state + _NUMBER))


def count_draw(state: int, n_threads: int) -> None:
    """Let the next launch draw the next minibatch. Each thread calls it, after its last draw.

    The number changes when all threads have read it: the last one to count does it.
    """
    if add_int64(state + _N_COUNTED, 1) == n_threads - 1:
        exchange_int64(state + _N_COUNTED, 0)
        store_int64(state + _NUMBER, load_int64(state + _NUMBER) + 1)


def read_transitions(table: int) -> Transitions:
    """Return the table at an address."""
    return Transitions(
        load_int64(table),
        load_int64(table + 8),
        load_int64(table + 16),
        load_int64(table + 24),
        load_int64(table + 32),
        load_int64(table + 40),
        load_int64(table + 48),
    )


def find_n_step_span(ring: Ring, number: int, column: int) -> NStepSpan:
    """Return the transition that begins with a step.

    It can't be sampled where a step of it is not valid or not written yet, or where the episode
    that it ends was cut off and its final observation was not given. Of an episode that terminated,
    what follows counts for nothing: without a final observation, the last step's own stands there.
    """
    table = ring.table
    row = number % table.n_rows
    last = row * table.width + column
    total = np.float32(0)
    factor = np.float32(1)
    is_whole = number >= ring.first
    is_ended = False
    step = 0
    while step < table.n_steps and is_whole and not is_ended:
        place = row * table.width + column
        is_written = number + step < ring.stop
        is_whole = is_written and load_byte(table.valid + place * table.valid_stride) != 0
        if is_whole:
            last = place
            total += factor * load_float32(table.reward + place * 4)
            factor *= ring.discount
            flags = load_byte(table.terminated + place) | load_byte(table.truncated + place)
            is_ended = flags != 0
            row = row + 1 if row + 1 < table.n_rows else 0
            step += 1
    # Row n_rows, behind the ring, holds what followed its last row; row 0 may be a lap older.
    next_row = last + table.width
    if is_ended:
        slot = load_int32(table.final_slot + last * 4)
        if slot >= 0:
            next_row = -1 - slot
        else:
            next_row = last
            is_terminated = load_byte(table.terminated + last) != 0
            is_whole = is_whole and is_terminated and slot == NOT_GIVEN
    return NStepSpan(is_whole, last, next_row, total, factor)


def write_transition(ring: Ring, number: int, column: int, out: Transitions, item: int) -> bool:
    """Write the transition that begins with a step, and return whether it can be sampled."""
    table = ring.table
    span = find_n_step_span(ring, number, column)
    terminated = load_byte(table.terminated + span.last)
    place = number % table.n_rows * table.width + column
    store_int64(out.identity + item * 8, number * table.width + column)
    store_int64(out.row + item * 8, place)
    store_int64(out.next_row + item * 8, span.next_row)
    store_float32(out.n_step_return + item * 4, span.total)
    discount = np.float32(0) if terminated != 0 else span.factor
    store_float32(out.n_step_discount + item * 4, discount)
    store_uint8(out.terminated + item, terminated)
    store_uint8(out.truncated + item, load_byte(table.truncated + span.last))
    return span.is_sampleable


def write_nothing(out: Transitions, item: int) -> None:
    """Write NaN to an item's return and discount, which shows in all that is learned from it."""
    store_int64(out.next_row + item * 8, load_int64(out.row + item * 8))
    store_float32(out.n_step_return + item * 4, np.float32(np.nan))
    store_float32(out.n_step_discount + item * 4, np.float32(np.nan))


def draw_words(seed: Seed, item: int, tried: int) -> Words:
    """Return the random words of an item of a minibatch."""
    counter = Words(item, tried, seed.number & 0xFFFFFFFF, seed.number >> 32)
    return philox(counter, Key(seed.key_a, seed.key_b))


def draw_transition(ring: Ring, seed: Seed, drawn: int, out: Transitions, item: int) -> bool:
    """Write a transition that can be sampled, each with the same probability.

    Steps are drawn until one is found. After `N_TRIES` draws, all steps are looked at in turn,
    beginning with the last drawn one. If none can be sampled, the item is that of `write_nothing`,
    and False is returned.

    Args:
        ring: what to draw from.
        seed: key and counter of the minibatch.
        drawn: number of the step to try first, counted from the oldest that is there.
        out: where transitions are written.
        item: index of the transition in the minibatch.
    """
    width, n_drawn_from = ring.table.width, (ring.stop - ring.first) * ring.table.width
    is_found = False
    tried = 0
    while tried < N_TRIES + n_drawn_from and not is_found:
        number, column = ring.first + drawn // width, drawn % width
        is_found = write_transition(ring, number, column, out, item)
        tried += 1
        if not is_found and tried < N_TRIES:
            drawn = draw_below(draw_words(seed, item, tried), n_drawn_from)
        elif not is_found:
            drawn = drawn + 1 if drawn + 1 < n_drawn_from else 0
    if not is_found:
        write_nothing(out, item)
    return is_found


def draw_on_grid(
    ring_table: int, state: int, discount: np.float32, n_items: int, transitions: int
) -> None:
    """Draw all transitions: one thread for each, on a grid with one axis."""
    ring, seed = read_ring(ring_table, state, discount), read_seed(state)
    out, n_threads = read_transitions(transitions), cuda.gridDim.x * cuda.blockDim.x
    item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_items:
        limit = (ring.stop - ring.first) * ring.table.width
        drawn = draw_below(draw_words(seed, item, 0), limit)
        draw_transition(ring, seed, drawn, out, item)
        item += n_threads
    count_draw(state, n_threads)


def draw_in_turn(
    ring_table: int,
    state: int,
    discount: np.float32,
    n_items: int,
    transitions: int,
    scratch: npt.NDArray[np.int64],
) -> int:
    """Draw all transitions on a CPU; return for how many there was none that can be sampled."""
    ring, seed = read_ring(ring_table, state, discount), read_seed(state)
    out = read_transitions(transitions)
    for item in range(n_items):  # apart from the rest: the compiler draws several at once
        limit = (ring.stop - ring.first) * ring.table.width
        scratch[item] = draw_below(draw_words(seed, item, 0), limit)
    n_missing = 0
    for item in range(n_items):
        if not draw_transition(ring, seed, scratch[item], out, item):
            n_missing += 1
    count_draw(state, 1)
    return n_missing


RING = "int64, int64, float32"
PARTS = (
    read_ring_table,
    read_ring,
    read_seed,
    count_draw,
    read_transitions,
    philox,
    draw_below,
    find_n_step_span,
    write_transition,
    write_nothing,
    draw_words,
)
DEVICE = DeviceEntry(
    "draw_transitions",
    draw_on_grid,
    f"void({RING}, int64, int64)",
    (*PARTS, draw_transition),
)
# `draw_in_turn` for a ring in host memory. Compiled, it checks nothing.
ON_CPU = CpuKernel(
    draw_in_turn,
    f"int64({RING}, int64, int64, Array(int64, 1, 'C'))",
    parts=(*PARTS, draw_transition),
)
