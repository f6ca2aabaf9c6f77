"""Prioritized draws of transitions, their weights, and their priorities: four kernels, CPU twins.

Only transitions that can be sampled have a priority above 0 (`refresh`), so a draw by priority
(`draw_leaf`) is never repeated. Priorities are updated from errors (`update_item`).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from parllel.kernels import sum_tree
from parllel.kernels.addresses import load_float32, load_int64, store_float32, store_int64
from parllel.kernels.philox import draw_below
from parllel.kernels.sum_tree import (
    SumTree,
    change_leaf,
    find_leaf,
    lower_smallest,
    raise_largest,
    read_largest,
    read_leaf_number,
    read_smallest,
    read_total,
    to_number,
    unpack_largest,
)
from parllel.kernels.targets import CpuKernel, DeviceEntry, cuda
from parllel.kernels.transitions import (
    BETA,
    RING,
    SMALLEST,
    Ring,
    Seed,
    Transitions,
    count_draw,
    draw_words,
    find_n_step_span,
    read_ring,
    read_seed,
    read_transitions,
    write_nothing,
    write_transition,
)
from parllel.kernels.transitions import PARTS as TRANSITION_PARTS

# NaN and infinity are not at most this.
LARGEST_FLOAT = np.finfo(np.float32).max


class Formula(NamedTuple):
    """How an error becomes a priority: (abs(error) + epsilon) ** alpha, at most the limit."""

    alpha: np.float32
    epsilon: np.float32
    limit: np.float32  # of the integer


def power(base: np.float32, exponent: np.float32) -> np.float32:
    """Return base ** exponent; targets differ in the last digits, but not for an exponent of 1."""
    return base if exponent == 1 else np.float32(math.pow(base, exponent))


def find_place(ring: Ring, number: int, column: int) -> int:
    """Return the place of a step in the ring: its leaf in the tree of sums."""
    return number % ring.table.n_rows * ring.table.width + column


def refresh(ring: Ring, tree: SumTree, begin: int, item: int) -> None:
    """Give a step the priority that it must have: 0 if it can't be sampled, else what it has.

    One that can be sampled from now on gets the largest priority that updates gave lately.

    Args:
        ring: the ring that the step is in.
        tree: priorities of its places.
        begin: number of the first step that is looked at.
        item: index of the step among those that are looked at; steps of the same number, one for
            each environment, follow each other.
    """
    number, column = begin + item // ring.table.width, item % ring.table.width
    leaf = find_place(ring, number, column)
    former = read_leaf_number(tree, leaf)
    if not find_n_step_span(ring, number, column).is_sampleable:
        if former > 0:
            change_leaf(tree, leaf, 0)
    elif former == 0:
        change_leaf(tree, leaf, read_largest(tree))


def update_item(ring: Ring, tree: SumTree, by: Formula, identity: int, error: np.float32) -> None:
    """Give a transition the priority of its error, unless it can't be sampled any more.

    An error that is NaN or infinite changes nothing. The largest priority is that of the updates
    since the last batch was written: the number of the next step tells which batch that was.
    """
    number, column = identity // ring.table.width, identity % ring.table.width
    leaf = find_place(ring, number, column)
    size = np.float32(abs(error))
    is_there = ring.first <= number < ring.stop and read_leaf_number(tree, leaf) > 0
    if is_there and size <= LARGEST_FLOAT:
        priority = to_number(power(size + by.epsilon, by.alpha), by.limit)
        change_leaf(tree, leaf, priority)
        raise_largest(tree, ring.stop, priority)


def find_bound(total: int, n_items: int, item: int) -> int:
    """Return where one of the equal shares of a sum begins; the products can't overflow."""
    return item * (total // n_items) + item * (total % n_items) // n_items


def draw_leaf(ring: Ring, tree: SumTree, seed: Seed, n_items: int, item: int) -> int:
    """Return a place out of one share of all priorities; the oldest step's where there are none."""
    total = read_total(tree)
    begin, end = find_bound(total, n_items, item), find_bound(total, n_items, item + 1)
    target = begin + draw_below(draw_words(seed, item, 0), max(1, end - begin))
    return find_leaf(tree, target) if total > 0 else find_place(ring, ring.first, 0)


def write_leaf(ring: Ring, tree: SumTree, leaf: int, out: Transitions, item: int) -> int:
    """Write the transition that begins at a place, and return its priority.

    That is 0 where nothing can be sampled, and then `write_nothing` is left.
    """
    width, n_rows = ring.table.width, ring.table.n_rows
    age = leaf // width - ring.first % n_rows
    number = ring.first + (age if age >= 0 else age + n_rows)
    write_transition(ring, number, leaf % width, out, item)
    priority = read_leaf_number(tree, leaf)
    if priority == 0:
        write_nothing(out, item)
    return priority


def find_smallest(priorities: int, n_items: int) -> int:
    """Return the smallest priority of a minibatch."""
    smallest = load_int64(priorities)
    for item in range(1, n_items):
        smallest = min(smallest, load_int64(priorities + item * 8))
    return smallest


def weigh(priority: int, smallest: int, beta: np.float32) -> np.float32:
    """Return (smallest / priority) ** beta.

    That is (N * probability) ** -beta of the paper, divided by the largest one of the minibatch.
    """
    share = np.float32(smallest) / np.float32(max(1, priority))
    return power(share, beta)


# Entries. `tree` is the address of a `SumTree`, `state` that of a `DrawState`.


def read_tree(table: int) -> SumTree:
    """Return the table at an address."""
    return SumTree(
        load_int64(table), load_int64(table + 8), load_int64(table + 16), load_int64(table + 24)
    )


def refresh_on_grid(
    ring_table: int,
    state: int,
    discount: np.float32,
    tree: int,
    begin: int,
    n_items: int,
) -> None:
    """Refresh steps from `begin` on: one thread for each, on a grid with one axis."""
    ring, sums = read_ring(ring_table, state, discount), read_tree(tree)
    item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_items:
        refresh(ring, sums, begin, item)
        item += cuda.gridDim.x * cuda.blockDim.x


def update_on_grid(
    ring_table: int,
    state: int,
    discount: np.float32,
    tree: int,
    alpha: np.float32,
    epsilon: np.float32,
    limit: np.float32,
    identities: int,
    errors: int,
    n_items: int,
) -> None:
    """Update priorities: one thread for each transition, on a grid with one axis."""
    ring, sums = read_ring(ring_table, state, discount), read_tree(tree)
    by = Formula(alpha, epsilon, limit)
    item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_items:
        error = load_float32(errors + item * 4)
        update_item(ring, sums, by, load_int64(identities + item * 8), error)
        item += cuda.gridDim.x * cuda.blockDim.x


def draw_by_priority_on_grid(
    ring_table: int,
    state: int,
    discount: np.float32,
    tree: int,
    n_items: int,
    transitions: int,
    priorities: int,
) -> None:
    """Draw all transitions: one thread for each, on a grid with one axis.

    It finds the smallest priority for `weigh_on_grid`, too: of the latest minibatch, for as long as
    there are fewer than 2**33 of them.
    """
    ring, sums = read_ring(ring_table, state, discount), read_tree(tree)
    out, seed = read_transitions(transitions), read_seed(state)
    n_threads = cuda.gridDim.x * cuda.blockDim.x
    item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_items:
        leaf = draw_leaf(ring, sums, seed, n_items, item)
        priority = write_leaf(ring, sums, leaf, out, item)
        store_int64(priorities + item * 8, priority)
        lower_smallest(state + SMALLEST, seed.number, priority)
        item += n_threads
    count_draw(state, n_threads)


def draw_by_priority_in_turn(
    ring_table: int,
    state: int,
    discount: np.float32,
    tree: int,
    n_items: int,
    transitions: int,
    priorities: int,
) -> None:
    """Draw all transitions on a CPU."""
    ring, sums = read_ring(ring_table, state, discount), read_tree(tree)
    out, seed = read_transitions(transitions), read_seed(state)
    for item in range(n_items):  # apart from the rest: less code waits for each load of a sum
        store_int64(priorities + item * 8, draw_leaf(ring, sums, seed, n_items, item))
    for item in range(n_items):
        leaf = load_int64(priorities + item * 8)
        store_int64(priorities + item * 8, write_leaf(ring, sums, leaf, out, item))
    count_draw(state, 1)


def weigh_on_grid(priorities: int, n_items: int, state: int, weights: int) -> None:
    """Write all weights: one thread for each, on a grid with one axis.

    The smallest priority is known from the draw: a thread loads it, and its own one.
    """
    item, beta = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, load_float32(state + BETA)
    smallest = read_smallest(state + SMALLEST)
    while item < n_items:
        store_float32(weights + item * 4, weigh(load_int64(priorities + item * 8), smallest, beta))
        item += cuda.gridDim.x * cuda.blockDim.x


def weigh_in_turn(priorities: int, n_items: int, state: int, weights: int) -> None:
    """Write all weights on a CPU, where the draw leaves it to this to find the smallest one."""
    smallest, beta = find_smallest(priorities, n_items), load_float32(state + BETA)
    for item in range(n_items):
        store_float32(weights + item * 4, weigh(load_int64(priorities + item * 8), smallest, beta))


_TREE_PARTS = (*TRANSITION_PARTS, *sum_tree.PARTS, read_tree, find_place)
REFRESH = DeviceEntry(
    "refresh_priorities",
    refresh_on_grid,
    f"void({RING}, int64, int64, int64)",
    (*_TREE_PARTS, refresh),
)
UPDATE = DeviceEntry(
    "update_priorities",
    update_on_grid,
    f"void({RING}, int64, float32, float32, float32, int64, int64, int64)",
    (*_TREE_PARTS, power, update_item),
)
DRAW = DeviceEntry(
    "draw_by_priority",
    draw_by_priority_on_grid,
    f"void({RING}, int64, int64, int64, int64)",
    (*_TREE_PARTS, find_bound, draw_leaf, write_leaf),
)
WEIGH = DeviceEntry(
    "weigh_priorities",
    weigh_on_grid,
    "void(int64, int64, int64, int64)",
    (unpack_largest, read_smallest, find_smallest, power, weigh),
)
# What runs on a CPU for each kernel: a loop of its own, or the only thread of a grid.
REFRESH_ON_CPU = CpuKernel(refresh_on_grid, REFRESH.signature, parts=REFRESH.parts)
UPDATE_ON_CPU = CpuKernel(update_on_grid, UPDATE.signature, parts=UPDATE.parts)
DRAW_ON_CPU = CpuKernel(draw_by_priority_in_turn, DRAW.signature, parts=DRAW.parts)
WEIGH_ON_CPU = CpuKernel(weigh_in_turn, WEIGH.signature, parts=WEIGH.parts)
_ON_CPU = {
    REFRESH.name: REFRESH_ON_CPU,
    UPDATE.name: UPDATE_ON_CPU,
    DRAW.name: DRAW_ON_CPU,
    WEIGH.name: WEIGH_ON_CPU,
}


def compiled(name: str) -> Callable[..., None]:
    """Return a kernel of this module for host memory, compiled.

    It checks nothing. The first call compiles, or loads what an earlier process compiled.

    Args:
        name: name of the kernel's entry; as a key it is found faster than a `DeviceEntry`.
    """
    return _ON_CPU[name].compiled
