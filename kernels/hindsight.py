"""Draws of goals for transitions (hindsight): what is achieved in another step of their episode.

The goal is that of the observation after a step, and is written as a code by which `windows`
gathers rows: the place of that observation in the ring, or -1 - slot of a final one.
"""

import numpy as np

from parllel.kernels.addresses import load_int64, store_int64
from parllel.kernels.breaks import PARTS as BREAK_PARTS
from parllel.kernels.breaks import count_open, count_open_before
from parllel.kernels.image_shift import FIRST_STREAM
from parllel.kernels.philox import draw_below, philox
from parllel.kernels.targets import CpuKernel, DeviceEntry, cuda
from parllel.kernels.transitions import (
    RING,
    Ring,
    Seed,
    draw_words,
    read_ring,
    read_ring_table,
    read_seed,
)
from parllel.kernels.window_search import find_following, is_learnable, row_beside

# Which steps of the episode a goal may be of: the transition's own and all later ones, the last
# one alone, or all.
FUTURE, FINAL, EPISODE = range(3)

# Where a counter of random words has the number of a try (`draw_words`), those of goals have this:
# more than any draw of transitions tries, and less than the streams of shifts.
GOAL_STREAM = FIRST_STREAM - 1


def draw_goal(ring: Ring, seed: Seed, strategy: int, identity: int, item: int) -> int:
    """Return the code of a goal for a transition of one step, each with the same probability.

    A step whose following observation is not known, as it may be the last one of its episode, is
    no choice. Where none is left, the transition could not be sampled: the code is its own place.

    Args:
        ring: the ring; its steps are those that were there when the transition was drawn.
        seed: key and number of the draw, by which the transition itself was not drawn.
        strategy: FUTURE, FINAL or EPISODE.
        identity: number * width + column of the transition's step.
        item: index of the transition in the minibatch.
    """
    table = ring.table
    number, column = identity // table.width, identity % table.width
    row = number % table.n_rows
    most = ring.stop - number
    n_after = count_open(table, row, column, most)
    if n_after < most and is_learnable(table, row_beside(table, row, n_after), column):
        n_after += 1
    n_before = 0
    if strategy == EPISODE:
        n_before = count_open_before(table, row, column, number - ring.first)
    chosen = n_after - 1
    if strategy != FINAL and n_after > 0:
        words = draw_words(seed, item, GOAL_STREAM)
        chosen = draw_below(words, n_before + n_after) - n_before
    code = row * table.width + column
    if n_after > 0:
        code = find_following(table, row_beside(table, row, chosen), column)
    return code


def draw_goals_on_grid(
    ring_table: int,
    state: int,
    discount: np.float32,
    strategy: int,
    n_items: int,
    identities: int,
    codes: int,
) -> None:
    """Draw a goal for each transition: one thread for each, on a grid with one axis.

    The state was counted up by the draw of the transitions, and is not counted up again.
    """
    ring, seed = read_ring(ring_table, state, discount), read_seed(state)
    item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_items:
        identity = load_int64(identities + item * 8)
        store_int64(codes + item * 8, draw_goal(ring, seed, strategy, identity, item))
        item += cuda.gridDim.x * cuda.blockDim.x


def draw_goals_in_turn(
    ring_table: int,
    state: int,
    discount: np.float32,
    strategy: int,
    n_items: int,
    identities: int,
    codes: int,
) -> None:
    """Draw a goal for each transition on a CPU."""
    ring, seed = read_ring(ring_table, state, discount), read_seed(state)
    for item in range(n_items):
        identity = load_int64(identities + item * 8)
        store_int64(codes + item * 8, draw_goal(ring, seed, strategy, identity, item))


PARTS = (
    read_ring_table,
    read_ring,
    read_seed,
    philox,
    draw_below,
    draw_words,
    *BREAK_PARTS,
    row_beside,
    is_learnable,
    find_following,
    draw_goal,
)
DEVICE = DeviceEntry(
    "draw_goals",
    draw_goals_on_grid,
    f"void({RING}, int64, int64, int64, int64)",
    PARTS,
)
# Compiled, it checks nothing.
ON_CPU = CpuKernel(
    draw_goals_in_turn,
    f"void({RING}, int64, int64, int64, int64)",
    parts=PARTS,
)
