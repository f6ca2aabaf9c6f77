"""Priorities of windows of steps, and draws of windows that follow them: three kernels.

As in `priorities`, only what can be sampled has a priority above 0, so that a draw is never
repeated. A CPU runs the entries as the only thread of a grid.
"""

from collections.abc import Callable

import numpy as np

from parllel.kernels import sum_tree
from parllel.kernels.addresses import load_byte, load_float32, load_int64, store_int64
from parllel.kernels.priorities import (
    LARGEST_FLOAT,
    Formula,
    draw_leaf,
    find_bound,
    find_place,
    power,
    read_tree,
)
from parllel.kernels.sequences import PARTS as SEQUENCE_PARTS
from parllel.kernels.sequences import Windows, read_windows, write_window
from parllel.kernels.sum_tree import (
    SumTree,
    change_leaf,
    lower_smallest,
    raise_largest,
    read_largest,
    read_leaf_number,
    to_number,
)
from parllel.kernels.targets import CpuKernel, DeviceEntry, cuda
from parllel.kernels.transitions import (
    RING,
    SMALLEST,
    Ring,
    count_draw,
    read_ring,
    read_seed,
)
from parllel.kernels.window_search import (
    Window,
    WindowTable,
    find_window,
    may_begin,
    read_window_table,
)


def find_named(ring: Ring, form: WindowTable, number: int, row: int, column: int) -> Window:
    """Return the window that a step names; one without steps where none can be sampled."""
    found = Window(number, row, column, False, 0, False, 0)
    if may_begin(ring, form, number, row, column):
        found = find_window(ring, form, number, row, column)
    if not found.is_sampleable:
        found = Window(ring.first, ring.first % ring.table.n_rows, 0, False, 0, False, 0)
    return found


def refresh_window(ring: Ring, form: WindowTable, tree: SumTree, begin: int, item: int) -> None:
    """Give a step's window the priority that it must have, as `priorities.refresh`."""
    number, column = begin + item // ring.table.width, item % ring.table.width
    row = number % ring.table.n_rows
    leaf = row * ring.table.width + column
    former = read_leaf_number(tree, leaf)
    if not find_named(ring, form, number, row, column).is_sampleable:
        if former > 0:
            change_leaf(tree, leaf, 0)
    elif former == 0:
        change_leaf(tree, leaf, read_largest(tree))


def mix_errors(
    errors: int, masks: int, n_rows: int, n_items: int, item: int, max_share: np.float32
) -> np.float32:
    """Return max_share * largest + (1 - max_share) * mean of the sizes of a window's errors.

    Those of rows whose mask is 0 do not count. It is -1 where none counts, or where one that does
    is NaN or infinite.

    Source: Kapturowski et al. 2019 (R2D2), section 2.3, with `max_share` for its eta.
    """
    largest, total, count, n_wrong = np.float32(0), np.float32(0), 0, 0
    for at in range(n_rows):
        place = at * n_items + item
        if load_byte(masks + place) != 0:
            size = np.float32(abs(load_float32(errors + place * 4)))
            n_wrong += 0 if size <= LARGEST_FLOAT else 1
            largest = max(largest, size)
            total += size
            count += 1
    mean = total / np.float32(max(1, count))
    mixed = mean + max_share * (largest - mean)
    return mixed if n_wrong == 0 and count > 0 else np.float32(-1)


def update_window(ring: Ring, tree: SumTree, by: Formula, identity: int, size: np.float32) -> None:
    """Give a window the priority of its errors, as `priorities.update_item`; not one below 0."""
    number, column = identity // ring.table.width, identity % ring.table.width
    leaf = find_place(ring, number, column)
    is_there = ring.first <= number < ring.stop and read_leaf_number(tree, leaf) > 0
    if is_there and 0 <= size <= LARGEST_FLOAT:
        priority = to_number(power(size + by.epsilon, by.alpha), by.limit)
        change_leaf(tree, leaf, priority)
        raise_largest(tree, ring.stop, priority)


def write_leaf_window(
    ring: Ring, form: WindowTable, tree: SumTree, leaf: int, out: Windows, item: int, n_items: int
) -> int:
    """Write the window that is named by a place, and return its priority; 0 for no window."""
    width, n_rows = ring.table.width, ring.table.n_rows
    row, column = leaf // width, leaf % width
    age = row - ring.first % n_rows
    number = ring.first + (age if age >= 0 else age + n_rows)
    found = find_named(ring, form, number, row, column)
    write_window(ring, form, found, out, item, n_items)
    return read_leaf_number(tree, leaf) if found.is_sampleable else 0


# Entries. `form` is the address of a `WindowTable`, `tree` that of a `SumTree`.


def refresh_windows_on_grid(
    ring_table: int,
    state: int,
    discount: np.float32,
    form: int,
    tree: int,
    begin: int,
    n_items: int,
) -> None:
    """Refresh the windows of steps from `begin` on: one thread for each step."""
    ring, sums = read_ring(ring_table, state, discount), read_tree(tree)
    shape = read_window_table(form)
    item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_items:
        refresh_window(ring, shape, sums, begin, item)
        item += cuda.gridDim.x * cuda.blockDim.x


def update_windows_on_grid(
    ring_table: int,
    state: int,
    discount: np.float32,
    tree: int,
    alpha: np.float32,
    epsilon: np.float32,
    limit: np.float32,
    max_share: np.float32,
    identities: int,
    errors: int,
    masks: int,
    n_rows: int,
    n_items: int,
) -> None:
    """Update priorities from errors [n_rows, n_items]: one thread for each window."""
    ring, sums = read_ring(ring_table, state, discount), read_tree(tree)
    by = Formula(alpha, epsilon, limit)
    item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_items:
        size = mix_errors(errors, masks, n_rows, n_items, item, max_share)
        update_window(ring, sums, by, load_int64(identities + item * 8), size)
        item += cuda.gridDim.x * cuda.blockDim.x


def draw_windows_by_priority_on_grid(
    ring_table: int,
    state: int,
    discount: np.float32,
    form: int,
    tree: int,
    n_items: int,
    windows: int,
    priorities: int,
) -> None:
    """Draw all windows, as `priorities.draw_by_priority_on_grid` draws transitions."""
    ring, sums = read_ring(ring_table, state, discount), read_tree(tree)
    shape, out, seed = read_window_table(form), read_windows(windows), read_seed(state)
    n_threads = cuda.gridDim.x * cuda.blockDim.x
    item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_items:
        leaf = draw_leaf(ring, sums, seed, n_items, item)
        priority = write_leaf_window(ring, shape, sums, leaf, out, item, n_items)
        store_int64(priorities + item * 8, priority)
        lower_smallest(state + SMALLEST, seed.number, priority)
        item += n_threads
    count_draw(state, n_threads)


_PARTS = (*SEQUENCE_PARTS, *sum_tree.PARTS, read_tree, find_place, find_named)
REFRESH = DeviceEntry(
    "refresh_windows",
    refresh_windows_on_grid,
    f"void({RING}, int64, int64, int64, int64)",
    (*_PARTS, refresh_window),
)
UPDATE = DeviceEntry(
    "update_windows",
    update_windows_on_grid,
    f"void({RING}, int64, float32, float32, float32, float32, int64, int64, int64, int64, int64)",
    (*_PARTS, power, mix_errors, update_window),
)
DRAW = DeviceEntry(
    "draw_windows_by_priority",
    draw_windows_by_priority_on_grid,
    f"void({RING}, int64, int64, int64, int64, int64)",
    (*_PARTS, find_bound, draw_leaf, write_leaf_window),
)
REFRESH_ON_CPU = CpuKernel(refresh_windows_on_grid, REFRESH.signature, parts=REFRESH.parts)
UPDATE_ON_CPU = CpuKernel(update_windows_on_grid, UPDATE.signature, parts=UPDATE.parts)
DRAW_ON_CPU = CpuKernel(draw_windows_by_priority_on_grid, DRAW.signature, parts=DRAW.parts)
_ON_CPU = {
    REFRESH.name: REFRESH_ON_CPU,
    UPDATE.name: UPDATE_ON_CPU,
    DRAW.name: DRAW_ON_CPU,
}


def compiled(name: str) -> Callable[..., None]:
    """Return a kernel of this module for host memory, compiled, as `priorities.compiled`."""
    return _ON_CPU[name].compiled
