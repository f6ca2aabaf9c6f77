"""The twins of parllel's own kernels: the entries of `kernels/parllel.ptx`, compiled for the CPU.

A twin is called with the launch's grid and block, and with its arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from parllel.kernels import advantage, frames, moments, normalize, rows
from parllel.kernels.targets import DeviceEntry, pointer_to, twin
from parllel.testing.simulated_cuda.twin_memory import (
    INTEGER_NBYTES,
    address_of,
    check_rows,
    integers_at,
)

Sizes: TypeAlias = tuple[int, ...]
Twin: TypeAlias = Callable[..., None]  # of grid, block, and the launch's arguments


def own_twins() -> Mapping[str, Twin]:
    """Return the twins by the names of the kernels. They are compiled when they first run."""
    on_arrays = {
        "advantage": advantage.DEVICE,
        "merge_moments": moments.MERGE,
        "moments": moments.MEASURE,
        "normalize": normalize.DEVICE,
        "update_moments": moments.UPDATE,
    }
    twins = {name: functools.partial(run_on_arrays, kernel) for name, kernel in on_arrays.items()}
    return {**twins, "frames": run_frames, "rows": run_rows}


def run_on_arrays(kernel: DeviceEntry, grid: Sizes, block: Sizes, *arguments: Any) -> None:
    """Run a kernel whose pointers are arrays; arguments as its entry has them."""
    flat = [pointer_to(each) if isinstance(each, np.ndarray) else each for each in arguments]
    _compiled(kernel)(*flat)


def run_rows(grid: Sizes, block: Sizes, table: Any, n_rows: Any, *picks: Any) -> None:
    """Copy rows; arguments as `kernels.rows.DEVICE` has them. Every address is checked."""
    n_leaves = (*grid, 1)[1]
    first = address_of(table)
    numbers = [address_of(each) for each in picks]
    written, read = (_span(int(n_rows), *numbers[at : at + 3]) for at in (0, 3))
    for number, leaf in enumerate(integers_at(first, n_leaves * 5).reshape(-1, 5).tolist()):
        destination, destination_stride, source, source_stride, nbytes = leaf
        if n_rows and nbytes:
            check_rows(
                f"rows, leaf {number}, written", destination, destination_stride, written, nbytes
            )
            check_rows(f"rows, leaf {number}, read", source, source_stride, read, nbytes)
        # Compiled, the entry is the only thread of a grid: it copies the table's first leaf.
        _compiled(rows.DEVICE)(first + number * rows.ENTRY_NBYTES, int(n_rows), *numbers)


def run_frames(grid: Sizes, block: Sizes, table: Any, out: Any, n_rows: Any, *picks: Any) -> None:
    """Gather stacks; arguments as `kernels.frames.DEVICE` has them. Every address is checked."""
    n_leaves, n_entries = (*grid, 1)[1], frames.ENTRY_NBYTES // INTEGER_NBYTES
    first, begin = address_of(table), address_of(out)
    numbers = [address_of(each) for each in picks]
    span = _span(int(n_rows), *numbers)
    entries = integers_at(first, n_leaves * n_entries).reshape(-1, n_entries)
    for number, leaf in enumerate(frames.Frames(*entry) for entry in entries.tolist()):
        if n_rows:
            nbytes, outputs = leaf.n_frames * leaf.nbytes, (0, int(n_rows) - 1)
            who = f"frames, leaf {number}"
            check_rows(f"{who}, written", begin + leaf.destination, nbytes, outputs, nbytes)
            _check_frames(who, leaf, span)
        # Compiled, the entry is the only thread of a grid: it gathers the table's first leaf.
        entry = first + number * frames.ENTRY_NBYTES
        _compiled(frames.DEVICE)(entry, begin, int(n_rows), *numbers)


def _check_frames(who: str, leaf: frames.Frames, span: tuple[int, int]) -> None:
    """Check what stacks are made of."""
    rows = np.array(span)
    if leaf.rows:
        lowest, highest = span
        rows = integers_at(leaf.rows + lowest * INTEGER_NBYTES, highest - lowest + 1)
        beside = -1 - rows[rows < 0]
        rows = rows[rows >= 0]
        if beside.size:
            ends = int(beside.min()), int(beside.max())
            check_rows(f"{who}, beside", leaf.beside, leaf.nbytes, ends, leaf.nbytes)
            if leaf.n_frames > 1:
                rows = np.concatenate([rows, integers_at(leaf.beside_rows, ends[1] + 1)[beside]])
    if rows.size:
        read = int(rows.min()) - (leaf.n_frames - 1) * leaf.n_columns, int(rows.max())
        check_rows(f"{who}, read", leaf.source, leaf.stride, read, leaf.nbytes)
        if leaf.n_frames > 1:
            check_rows(f"{who}, flags", leaf.is_first, 1, read, 1)
    if leaf.blank:
        check_rows(f"{who}, blank", leaf.blank, 0, (0, 0), leaf.nbytes)


@functools.cache
def _compiled(kernel: DeviceEntry) -> Callable[..., Any]:
    signature = kernel.signature
    for element in ("float32", "uint8", "int64"):
        signature = signature.replace(f"CPointer({element})", f"{element}[::1]")
    return twin(kernel.entry, signature, parts=kernel.parts)


def _span(n_rows: int, vector: int, start: int, step: int) -> tuple[int, int]:
    """Return the lowest and the highest row that are picked; (0, 0) where there is none."""
    if not n_rows:
        return 0, 0
    if vector:
        picked = integers_at(vector, n_rows)
        return int(picked.min()), int(picked.max())
    last = start + (n_rows - 1) * step
    return min(start, last), max(start, last)
