"""Checks of the addresses that kernels find in tables: the device must be able to use them all.

An array among a launch's arguments is checked by the launch itself. Of the memory behind addresses
in a table only the kernel's own check knows, which `CHECKS` has by the kernel's name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel.kernels import frames, ragged, stack_table, windows
from parllel.kernels.agent_transitions import (
    EARNED_NUMBERS,
    LEAF_NUMBERS,
    TABLE_NUMBERS,
    AgentsTable,
)
from parllel.kernels.breaks import count_integers
from parllel.kernels.instructions import N_BITS
from parllel.kernels.sequences import BACK_BITS, Windows
from parllel.kernels.sum_tree import SumTree
from parllel.kernels.transitions import STATE_NUMBERS, RingTable
from parllel.kernels.window_search import WindowTable
from parllel.testing.simulated_cuda.active import machine

Sizes: TypeAlias = tuple[int, ...]
Argument: TypeAlias = Any  # of a launch: an array, or a scalar of NumPy

INTEGER_NBYTES = 8
_ROWS_NUMBERS = 5  # of `RowTable`, for each leaf
_FRAMES_NUMBERS = stack_table.ENTRY_NBYTES // INTEGER_NBYTES
_N_SHARES = 5  # arguments that share out the rows, of `teams.Teams`
_ITEM_NBYTES = (8, 8, 8, 4, 4, 1, 1)  # of the arrays of `transitions.Transitions`


def address_of(argument: Argument) -> int:
    """Return the address that a launch's argument is."""
    return argument.ctypes.data if isinstance(argument, np.ndarray) else int(argument)


def integers_at(address: int, n: int) -> NDArray[np.int64]:
    """Return int64 numbers that the device may read."""
    nbytes = n * INTEGER_NBYTES
    machine().memory.check(address, nbytes, "rows, a table or an index")
    region = machine().memory.find(address)
    assert region is not None, "check has raised otherwise"
    start = address - region.address
    return region.data[start : start + nbytes].view(np.int64)


def check_rows(what: str, address: int, stride: int, span: tuple[int, int], nbytes: int) -> None:
    """Raise unless the device may use the rows from the lowest to the highest."""
    ends = [address + row * stride for row in span]
    machine().memory.check(min(ends), max(ends) + nbytes - min(ends), what)


def check_rows_kernel(grid: Sizes, table: Argument, n_rows: Argument, *picks: Argument) -> None:
    """Check the arguments of `kernels.rows.DEVICE`."""
    *numbers, n_wide, n_narrow, _, _, _ = [address_of(each) for each in picks]
    n_leaves = n_wide + n_narrow
    written, read = (_span(int(n_rows), *numbers[at : at + 3]) for at in (0, 3))
    entries = integers_at(address_of(table), n_leaves * _ROWS_NUMBERS)
    for number, leaf in enumerate(entries.reshape(-1, _ROWS_NUMBERS).tolist()):
        destination, destination_stride, source, source_stride, nbytes = leaf
        if n_rows and nbytes:
            check_rows(
                f"rows, leaf {number}, written", destination, destination_stride, written, nbytes
            )
            check_rows(f"rows, leaf {number}, read", source, source_stride, read, nbytes)


def check_frames_kernel(
    grid: Sizes, table: Argument, out: Argument, n_rows: Argument, *picks: Argument
) -> None:
    """Check the arguments of `kernels.frames_on_grid.DEVICE`."""
    *numbers, _, n_wide, n_narrow, _, _, _ = [address_of(each) for each in picks]
    n_leaves = n_wide + n_narrow
    begin, span = address_of(out), _span(int(n_rows), *numbers)
    entries = integers_at(address_of(table), n_leaves * _FRAMES_NUMBERS)
    leaves = entries.reshape(-1, _FRAMES_NUMBERS).tolist()
    for number, leaf in enumerate(map(_as_frames, leaves)):
        if n_rows:
            nbytes, outputs = frames.stacks_nbytes(leaf), (0, int(n_rows) - 1)
            what = f"frames, leaf {number}"
            check_rows(f"{what}, written", begin + leaf.destination, nbytes, outputs, nbytes)
            _check_frames(what, leaf, span)


def _as_frames(entry: Sequence[int]) -> frames.Frames:
    return frames.Frames(*entry[: len(frames.Frames._fields)])


def check_shifted_frames_kernel(
    grid: Sizes, table: Argument, out: Argument, n_rows: Argument, *picks: Argument
) -> None:
    """Check the arguments of `kernels.frames_on_grid.SHIFTED`."""
    *others, seed = picks[:-_N_SHARES]
    integers_at(address_of(seed), 3)
    check_frames_kernel(grid, table, out, n_rows, *others, *picks[-_N_SHARES:])


def _check_frames(what: str, leaf: frames.Frames, span: tuple[int, int]) -> None:
    """Check what stacks are made of."""
    rows = np.array(span)
    if leaf.rows:
        lowest, highest = span
        rows = integers_at(leaf.rows + lowest * INTEGER_NBYTES, highest - lowest + 1)
        beside = -1 - rows[rows < 0]
        rows = rows[rows >= 0]
        if beside.size:
            ends = int(beside.min()), int(beside.max())
            nbytes = leaf.n_stacks * leaf.nbytes
            check_rows(f"{what}, beside", leaf.beside, nbytes, ends, nbytes)
            if leaf.n_frames > 1:
                rows = np.concatenate([rows, integers_at(leaf.beside_rows, ends[1] + 1)[beside]])
    if rows.size:
        first, last = int(rows.min()) * leaf.n_stacks, (int(rows.max()) + 1) * leaf.n_stacks - 1
        read = first - (leaf.n_frames - 1) * leaf.n_columns, last
        check_rows(f"{what}, read", leaf.source, leaf.stride, read, leaf.nbytes)
        if leaf.n_frames > 1:
            check_rows(f"{what}, flags", leaf.is_first, 1, read, 1)
    if leaf.blank:
        check_rows(f"{what}, blank", leaf.blank, 0, (0, 0), leaf.nbytes)


def check_ragged_kernel(grid: Sizes, table: Argument, n_rows: Argument, *picks: Argument) -> None:
    """Check the arguments of `kernels.ragged.DEVICE`."""
    *numbers, n_wide, n_narrow, _, _, _ = [address_of(each) for each in picks]
    n_numbers = ragged.ENTRY_NBYTES // INTEGER_NBYTES
    entries = integers_at(address_of(table), (n_wide + n_narrow) * n_numbers)
    lowest, highest = _span(int(n_rows), *numbers)
    for number, entry in enumerate(entries.reshape(-1, n_numbers).tolist()):
        leaf, what = ragged.RaggedLeaf(*entry), f"ragged, leaf {number}"
        slots = np.array([lowest, highest])
        if leaf.rows:
            at = leaf.rows + lowest * INTEGER_NBYTES
            slots = integers_at(at, highest - lowest + 1)
        if leaf.offsets:
            integers_at(leaf.offsets, int(n_rows) + 1)
        nbytes = leaf.capacity * leaf.item_nbytes
        last = int(n_rows) - 1
        check_rows(f"{what}, written", leaf.destination, nbytes, (0, last), nbytes)
        beside, places = -1 - slots[slots < 0], slots[slots >= 0] & ((1 << BACK_BITS) - 1)
        for name, picked, source, stride, lengths in (
            ("beside", beside, leaf.beside, nbytes, leaf.beside_lengths),
            ("read", places, leaf.source, leaf.stride, leaf.lengths),
        ):
            if picked.size:
                ends = int(picked.min()), int(picked.max())
                check_rows(f"{what}, {name}", source, stride, ends, nbytes)
                if lengths:
                    check_rows(f"{what}, lengths {name}", lengths, 8, ends, 8)


def _span(n_rows: int, vector: int, start: int, step: int) -> tuple[int, int]:
    """Return the lowest and the highest row that are picked; (0, 0) where there is none."""
    if not n_rows:
        return 0, 0
    if vector:
        picked = integers_at(vector, n_rows)
        return int(picked.min()), int(picked.max())
    last = start + (n_rows - 1) * step
    return min(start, last), max(start, last)


def check_draw_transitions(grid: Sizes, *arguments: Argument) -> None:
    """Check the arguments of `kernels.transitions.DEVICE`."""
    *_, n_items, out = arguments
    _check_arrays("draw_transitions", out, _ITEM_NBYTES, int(n_items))
    _check_ring("draw_transitions", *arguments[:2])


def check_draw_goals(grid: Sizes, *arguments: Argument) -> None:
    """Check the arguments of `kernels.hindsight.DEVICE`."""
    ring, state, *_, n_items, identities, codes = arguments
    _check_ring("draw_goals", ring, state)
    for vector in (identities, codes):
        integers_at(address_of(vector), int(n_items))


def check_draw_by_priority(grid: Sizes, *arguments: Argument) -> None:
    """Check the arguments of `kernels.priorities.DRAW`."""
    *_, n_items, out, drawn = arguments
    _check_arrays("draw_by_priority", out, _ITEM_NBYTES, int(n_items))
    integers_at(address_of(drawn), int(n_items))
    check_ring_and_sums("draw_by_priority", grid, *arguments)


def check_update_priorities(grid: Sizes, *arguments: Argument) -> None:
    """Check the arguments of `kernels.priorities.UPDATE`."""
    *_, index, error, n_items = arguments
    last = int(n_items) - 1
    check_rows("update_priorities, index", address_of(index), 8, (0, last), 8)
    check_rows("update_priorities, error", address_of(error), 4, (0, last), 4)
    check_ring_and_sums("update_priorities", grid, *arguments)


def check_weigh_priorities(
    grid: Sizes, drawn: Argument, n_items: Argument, state: Argument, weights: Argument
) -> None:
    """Check the arguments of `kernels.priorities.WEIGH`."""
    integers_at(address_of(state), STATE_NUMBERS)
    integers_at(address_of(drawn), int(n_items))
    check_rows("weigh_priorities", address_of(weights), 4, (0, int(n_items) - 1), 4)


def check_draw_windows(grid: Sizes, *arguments: Argument) -> None:
    """Check the arguments of `kernels.sequences.DEVICE`."""
    ring, state, _, form, n_items, out = arguments
    _check_ring("draw_windows", ring, state)
    _check_windows("draw_windows", form, out, int(n_items))


def check_draw_windows_by_priority(grid: Sizes, *arguments: Argument) -> None:
    """Check the arguments of `kernels.sequence_priorities.DRAW`."""
    ring, state, _, form, tree, n_items, out, drawn = arguments
    what = "draw_windows_by_priority"
    _check_ring(what, ring, state)
    _check_sums(what, tree)
    _check_windows(what, form, out, int(n_items))
    integers_at(address_of(drawn), int(n_items))


def check_refresh_windows(grid: Sizes, *arguments: Argument) -> None:
    """Check the arguments of `kernels.sequence_priorities.REFRESH`."""
    ring, state, _, form, tree, *_ = arguments
    _check_ring("refresh_windows", ring, state)
    integers_at(address_of(form), len(WindowTable._fields))
    _check_sums("refresh_windows", tree)


def check_update_windows(grid: Sizes, *arguments: Argument) -> None:
    """Check the arguments of `kernels.sequence_priorities.UPDATE`."""
    *_, index, error, mask, n_rows, n_items = arguments
    n = int(n_rows) * int(n_items)
    integers_at(address_of(index), int(n_items))
    check_rows("update_windows, error", address_of(error), 4, (0, n - 1), 4)
    check_rows("update_windows, mask", address_of(mask), 1, (0, n - 1), 1)
    check_ring_and_sums("update_windows", grid, *arguments)


def check_gather_windows(grid: Sizes, table: Argument, *shares: Argument) -> None:
    """Check the arguments of `kernels.windows.DEVICE`."""
    n_leaves = sum(int(each) for each in shares[:2])
    n_numbers = windows.ENTRY_NBYTES // INTEGER_NBYTES
    entries = integers_at(address_of(table), n_leaves * n_numbers).reshape(-1, n_numbers)
    for number, entry in enumerate(entries.tolist()):
        leaf = windows.WindowLeaf(*entry[:-1])
        what, outputs = f"windows, leaf {number}", (0, leaf.n_rows - 1)
        check_rows(f"{what}, written", leaf.destination, leaf.nbytes, outputs, leaf.nbytes)
        codes = integers_at(leaf.codes, leaf.n_rows)
        if (beside := -1 - codes[codes < 0]).size:
            ends = int(beside.min()), int(beside.max())
            check_rows(f"{what}, beside", leaf.beside, leaf.nbytes, ends, leaf.nbytes)
        if (places := codes[codes >= 0]).size:
            places, backs = places & ((1 << BACK_BITS) - 1), places >> BACK_BITS
            ends = int(places.min()), int(places.max())
            check_rows(f"{what}, read", leaf.source, leaf.stride, ends, leaf.nbytes)
            if leaf.n_frames > 1 and (stacks := places[backs > 0]).size:
                first = int(stacks.min()) - (leaf.n_frames - 1) * leaf.n_columns
                check_rows(f"{what}, flags", leaf.is_first, 1, (first, int(stacks.max())), 1)


def _check_windows(what: str, form: Argument, out: Argument, n_items: int) -> None:
    """Check what is written for windows."""
    table = WindowTable(*integers_at(address_of(form), len(WindowTable._fields)).tolist())
    n_rows = table.burn_in + table.length
    sizes = Windows(8, 8 * (table.n_older + n_rows + 1), 8 * n_rows, 8, n_rows + 1, n_rows)
    _check_arrays(what, out, sizes, n_items)


def check_ring_and_sums(what: str, grid: Sizes, *arguments: Argument) -> None:
    """Check the tables of a kernel whose first arguments are a ring and a tree of sums."""
    ring, state, _, tree, *_ = arguments
    _check_ring(what, ring, state)
    _check_sums(what, tree)


def check_mark_breaks(grid: Sizes, *arguments: Argument) -> None:
    """Check the arguments of `kernels.breaks.DEVICE`."""
    ring, begin, end, n_items = arguments
    table = _check_leaves("mark_breaks", ring)
    n_integers = count_integers(int(end)) - int(begin) // N_BITS
    assert 0 <= begin < end <= table.n_rows
    assert n_items == n_integers * table.width


def _check_ring(what: str, table: Argument, state: Argument) -> None:
    integers_at(address_of(state), STATE_NUMBERS)
    _check_leaves(what, table)


def _check_leaves(what: str, table: Argument) -> RingTable:
    numbers = integers_at(address_of(table), len(RingTable._fields))
    leaves = RingTable(*numbers.tolist())
    n = leaves.n_rows * leaves.width
    for address, nbytes in (
        (leaves.reward, 4 * n),
        (leaves.terminated, n),
        (leaves.truncated, n),
        (leaves.valid, n if leaves.valid_stride else 1),
        (leaves.final_slot, 4 * n),
    ):
        check_rows(what, address, nbytes, (0, 0), nbytes)
    if leaves.breaks:
        integers_at(leaves.breaks, count_integers(leaves.n_rows) * leaves.width)
    return leaves


def _check_sums(what: str, table: Argument) -> None:
    tree = SumTree(*integers_at(address_of(table), len(SumTree._fields)).tolist())
    offsets = integers_at(tree.offsets, tree.n_levels)
    integers_at(tree.sums, int(offsets[-1]) + 1)
    check_rows(what, tree.largest, 8, (0, 0), 8)


def _check_arrays(what: str, table: Argument, sizes: Sequence[int], n_items: int) -> None:
    """Check arrays of items of these sizes, at the addresses of a table."""
    for address, size in zip(
        integers_at(address_of(table), len(sizes)).tolist(), sizes, strict=True
    ):
        check_rows(what, address, size, (0, n_items - 1), size)


def check_join_agent_ends(
    grid: Sizes, table: Argument, begin: Argument, n_places: Argument
) -> None:
    """Check the arguments of `kernels.agent_transitions.JOIN`."""
    _check_agents("join_agent_ends", table, (int(begin), int(begin) + int(n_places) - 1))


def check_earn_of_agents(grid: Sizes, *arguments: Argument) -> None:
    """Check the arguments of `kernels.agent_transitions.EARN`."""
    what, (table, earned, _, rows, discounts, n_items) = "earn_of_agents", arguments
    n, n_agents = int(n_items), _check_agents("earn_of_agents", table, None)
    integers_at(address_of(rows), n)
    check_rows(what, address_of(discounts), 4, (0, n - 1), 4)
    leaves = integers_at(address_of(earned), n_agents * EARNED_NUMBERS)
    for leaf in leaves.reshape(n_agents, -1).tolist():
        for address, nbytes in zip(leaf[:-1], (4, 4, 1, 1, 1), strict=True):
            check_rows(f"{what}, written", address, nbytes * leaf[-1], (0, n - 1), nbytes)


def _check_agents(what: str, table: Argument, span: tuple[int, int] | None) -> int:
    """Check the leaves of agents for some places, or for all; return the number of agents."""
    at = address_of(table)
    numbers = AgentsTable(*integers_at(at, TABLE_NUMBERS).tolist())
    span = span or (0, numbers.n_rows * numbers.width - 1)
    for address in numbers[:3]:
        check_rows(what, address, 1, span, 1)
    n = numbers.n_agents * LEAF_NUMBERS
    leaves = integers_at(at, TABLE_NUMBERS + n)[TABLE_NUMBERS:]
    for leaf in leaves.reshape(-1, LEAF_NUMBERS).tolist():
        for address, stride, nbytes in zip(leaf[:4], leaf[4:], (4, 1, 1, 1), strict=True):
            check_rows(what, address, stride * nbytes, span, nbytes)
    return numbers.n_agents


CHECKS: Mapping[str, Callable[..., None]] = {
    "earn_of_agents": check_earn_of_agents,
    "join_agent_ends": check_join_agent_ends,
    "draw_by_priority": check_draw_by_priority,
    "draw_goals": check_draw_goals,
    "draw_transitions": check_draw_transitions,
    "draw_windows": check_draw_windows,
    "draw_windows_by_priority": check_draw_windows_by_priority,
    "frames": check_frames_kernel,
    "gather_windows": check_gather_windows,
    "mark_breaks": check_mark_breaks,
    "refresh_windows": check_refresh_windows,
    "update_windows": check_update_windows,
    "refresh_priorities": functools.partial(check_ring_and_sums, "refresh_priorities"),
    "ragged": check_ragged_kernel,
    "rows": check_rows_kernel,
    "shifted_frames": check_shifted_frames_kernel,
    "update_priorities": check_update_priorities,
    "weigh_priorities": check_weigh_priorities,
}
