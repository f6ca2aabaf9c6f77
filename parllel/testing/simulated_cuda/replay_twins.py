"""The twins of the kernels of replay buffers. Every address in their tables is checked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from parllel.kernels import priorities, sum_tree, transitions
from parllel.kernels.targets import DeviceEntry, twin
from parllel.testing.simulated_cuda.twin_memory import address_of, check_rows, integers_at
from parllel.testing.simulated_cuda.twins import Sizes, Twin

_ITEM_SIZES = (8, 8, 8, 4, 4, 1, 1)  # of the arrays of `transitions.Transitions`, in bytes


def replay_twins() -> Mapping[str, Twin]:
    """Return the twins by the names of the kernels. They are compiled when they first run."""
    return {
        "draw_by_priority": run_draw_by_priority,
        "draw_transitions": run_draw_transitions,
        "refresh_priorities": functools.partial(run_on_ring, priorities.REFRESH),
        "update_priorities": run_update_priorities,
        "weigh_priorities": run_weigh_priorities,
    }


def run_draw_transitions(grid: Sizes, block: Sizes, *arguments: Any) -> None:
    """Draw transitions; arguments as `kernels.transitions.DEVICE` has them."""
    *_, n_items, out = arguments
    _check_arrays("draw_transitions", out, _ITEM_SIZES, int(n_items))
    run_on_ring(transitions.DEVICE, grid, block, *arguments)


def run_draw_by_priority(grid: Sizes, block: Sizes, *arguments: Any) -> None:
    """Draw transitions; arguments as `kernels.priorities.DRAW` has them."""
    *_, n_items, out, drawn = arguments
    _check_arrays("draw_by_priority", out, _ITEM_SIZES, int(n_items))
    integers_at(address_of(drawn), int(n_items))
    run_on_ring(priorities.DRAW, grid, block, *arguments)


def run_update_priorities(grid: Sizes, block: Sizes, *arguments: Any) -> None:
    """Update priorities; arguments as `kernels.priorities.UPDATE` has them."""
    *_, index, error, n_items = arguments
    last = int(n_items) - 1
    check_rows("update_priorities, index", address_of(index), 8, (0, last), 8)
    check_rows("update_priorities, error", address_of(error), 4, (0, last), 4)
    run_on_ring(priorities.UPDATE, grid, block, *arguments)


def run_weigh_priorities(
    grid: Sizes, block: Sizes, drawn: Any, n_items: Any, beta: Any, weights: Any
) -> None:
    """Weigh transitions; arguments as `kernels.priorities.WEIGH` has them."""
    integers_at(address_of(drawn), int(n_items))
    check_rows("weigh_priorities", address_of(weights), 4, (0, int(n_items) - 1), 4)
    _compiled(priorities.WEIGH)(address_of(drawn), int(n_items), beta, address_of(weights))


def run_on_ring(kernel: DeviceEntry, grid: Sizes, block: Sizes, *arguments: Any) -> None:
    """Run a kernel whose first arguments are a ring, and a tree of sums where it has one."""
    leaves, _, _, _, tree, *_ = arguments
    _check_ring(kernel.entry.__name__, address_of(leaves))
    if kernel is not transitions.DEVICE:
        _check_sums(kernel.entry.__name__, address_of(tree))
    _compiled(kernel)(*map(_plain, arguments))


def _plain(argument: Any) -> Any:
    """Return what a twin takes: an address or an integer, and floats as they are."""
    return argument if isinstance(argument, np.float32) else address_of(argument)


@functools.cache
def _compiled(kernel: DeviceEntry) -> Callable[..., Any]:
    return twin(kernel.entry, kernel.signature, parts=kernel.parts)


def _check_ring(who: str, table: int) -> None:
    leaves = transitions.Leaves(*integers_at(table, len(transitions.Leaves._fields)).tolist())
    n = leaves.n_rows * leaves.width
    for address, nbytes in (
        (leaves.reward, 4 * n),
        (leaves.terminated, n),
        (leaves.truncated, n),
        (leaves.valid, n if leaves.valid_stride else 1),
        (leaves.final_slot, 4 * n),
    ):
        check_rows(who, address, nbytes, (0, 0), nbytes)


def _check_sums(who: str, table: int) -> None:
    tree = sum_tree.SumTree(*integers_at(table, len(sum_tree.SumTree._fields)).tolist())
    offsets = integers_at(tree.offsets, tree.n_levels)
    integers_at(tree.sums, int(offsets[-1]) + 1)
    check_rows(who, tree.largest, 8, (0, 0), 8)


def _check_arrays(who: str, table: Any, sizes: Sequence[int], n_items: int) -> None:
    """Check arrays of items of these sizes, at the addresses of a table."""
    for address, size in zip(
        integers_at(address_of(table), len(sizes)).tolist(), sizes, strict=True
    ):
        check_rows(who, address, size, (0, n_items - 1), size)
