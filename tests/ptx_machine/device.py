"""A simulated device whose launches execute PTX; the library's own code queues them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

from parllel.ops import copy_grid, launching
from parllel.testing import simulated_cuda
from parllel.testing.simulated_cuda import active
from ptx_machine.machine import Machine
from ptx_machine.memory import CHANGE, READ, WRITE, Block, DeviceMemory, Shared

# What threads of an entry may share: kinds of access, and the number of the argument that names the
# memory, or None for all of it.
#
# A draw counts its threads by an atomic. The last one, when all others have read the number of the
# minibatch and counted, writes the next number and begins to count anew.
#
# A transition whose priority is updated may be named twice: one thread asks whether it has one,
# while the other exchanges it for one that is above 0 as well: the answer is the same either way.
_COUNTING = ((WRITE, READ, 1), (WRITE, CHANGE, 1))
ALLOWED: Mapping[str, tuple[tuple[str, str, int | None], ...]] = {
    "draw_by_priority": _COUNTING,
    "draw_transitions": _COUNTING,
    "draw_windows": _COUNTING,
    "draw_windows_by_priority": _COUNTING,
    "update_priorities": ((READ, CHANGE, None),),
}


@contextmanager
def device_of(machine: Machine, seed: int, *, most_steps: int = 100_000) -> Iterator[list[str]]:
    """Let a simulated device execute a machine's entries, and hold all that they do to memory.

    Yields the names of the entries that were launched, in their order. New memory has bytes of
    0xFF, NaN in floats and -1 in integers. A kernel may read it and use nothing of it, so that is
    no error by itself: what depends on it differs from the reference.

    Args:
        machine: the entries.
        seed: of the order of threads, and of the order in which queued work runs. Of three seeds in
            a row, two have grids of few blocks, so that threads have to go on where the grid ends.
        most_steps: as `Machine.launch` takes them.
    """
    launched: list[str] = []

    def stand_in(name: str) -> Callable[..., None]:
        def run(grid: tuple[int, ...], block: tuple[int, ...], *arguments: object) -> None:
            launched.append(name)
            regions = active.machine().memory.reachable()
            blocks = [Block(region.address, region.data, region) for region in regions]
            scalars = [_as_scalar(argument) for argument in arguments]
            allowed = [
                Shared(kind, other, None if number is None else int(scalars[number]))
                for kind, other, number in ALLOWED.get(name, ())
            ]
            memory = DeviceMemory(blocks, allowed)
            order = seed + len(launched)
            machine.launch(name, grid, block, scalars, memory, seed=order, most_steps=most_steps)

        return run

    stand_ins = {name: stand_in(name) for name in machine.kernels}
    most_blocks = (launching.MOST_BLOCKS, 2, 1)[seed % 3]
    with ExitStack() as stack:
        for module in (launching, copy_grid):
            stack.enter_context(mock.patch.object(module, "MOST_BLOCKS", most_blocks))
        stack.enter_context(simulated_cuda("random", seed, kernels=stand_ins))
        yield launched


def _as_scalar(argument: object) -> Any:  # Any: NumPy's scalars of all kinds
    """Return what a GPU's entry is given: of an array its address."""
    if isinstance(argument, np.ndarray):
        return np.int64(argument.ctypes.data)
    assert isinstance(argument, np.generic)
    return argument
