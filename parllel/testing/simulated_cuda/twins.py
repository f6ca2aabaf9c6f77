"""The twins of parllel's own kernels: the entries of `kernels/parllel.ptx`, compiled for the CPU.

A twin is called with the launch's grid and block, and with its arguments. `find_entries` names the
kernels, so a new one is simulated as soon as its module is there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from parllel.kernels.targets import DeviceEntry, find_entries, pointer_to, twin
from parllel.testing.simulated_cuda.table_checks import CHECKS, address_of

Sizes: TypeAlias = tuple[int, ...]
Twin: TypeAlias = Callable[..., None]  # called with grid, block, and the launch's arguments


def own_twins() -> Mapping[str, Twin]:
    """Return the twins by the names of the kernels. They are compiled when they first run."""
    return {name: functools.partial(run, kernel) for name, kernel in find_entries().items()}


def run(kernel: DeviceEntry, grid: Sizes, block: Sizes, *arguments: object) -> None:
    """Run a kernel as the only thread of a grid, after a check of the addresses in its tables.

    Args:
        kernel: what to run.
        grid, block: sizes of the launch; any grid does all the work.
        arguments: as the kernel's entry has them: NumPy's view of a device array, the address of
            a pointer, or a scalar of NumPy.
    """
    check = CHECKS.get(kernel.name)
    if check is not None:
        check(grid, *arguments)
    compiled(kernel)(*map(_plain, _kinds(kernel), arguments))


def _kinds(kernel: DeviceEntry) -> list[str]:
    """Return the types of a kernel's arguments, in Numba's notation."""
    return kernel.signature.removeprefix("void(").removesuffix(")").split(", ")


def _plain(kind: str, argument: object) -> Any:  # Any: as the compiled entry takes it
    """Return what a compiled entry takes: a flat array for a pointer, an integer, or a float."""
    if kind.startswith("CPointer"):
        return pointer_to(argument) if isinstance(argument, np.ndarray) else argument
    return argument if kind.startswith("float") else address_of(argument)


@functools.cache
def compiled(kernel: DeviceEntry) -> Callable[..., None]:
    """Return a kernel's twin, compiled or loaded from the disk cache."""
    signature = kernel.signature
    for element in ("float32", "uint8", "int64"):
        signature = signature.replace(f"CPointer({element})", f"{element}[::1]")
    return twin(kernel.entry, signature, parts=kernel.parts)
