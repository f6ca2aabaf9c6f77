"""The twins of parllel's own kernels: the entries of `kernels/parllel.ptx`, compiled for the CPU.

A twin is called with the launch's grid and block, and with its arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from parllel.kernels import advantage, moments, normalize, rows
from parllel.kernels.targets import DeviceEntry, pointer_to, twin
from parllel.testing.simulated_cuda.twin_memory import address_of, check_rows, integers_at

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
    return {**twins, "rows": run_rows}


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
