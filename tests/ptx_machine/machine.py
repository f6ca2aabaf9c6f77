"""Machine: launches of a module's entries, executed for many threads at once in NumPy.

Threads have an element in each array. All that are at the same block of instructions execute it
together, and the earliest block of the text goes first. Threads wait for nothing but for lanes of
their warp that exchange values with them, so every such order is one that a GPU may take.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ptx_machine.exchanges import Exchange, refuse_waiting
from ptx_machine.faults import EndlessError, PtxError
from ptx_machine.instructions import Kernel, guarded, prepare
from ptx_machine.memory import DeviceMemory
from ptx_machine.number_types import DTYPES
from ptx_machine.team import Team, Values
from ptx_machine.text import Entry, read_module

_TEAM = 4096  # threads at once, whole blocks of them: their registers fit into a CPU's cache
_MOST_STEPS = 100_000  # blocks of instructions of a team: a draw that finds nothing takes 30,000


class Machine:
    """Executes the entries of a module.

    Args:
        text: the module's text.

    Attributes:
        kernels: the entries by their names.
        executed: of each entry the lines of the text that some thread came to.

    Raises:
        UnknownTextError: an instruction is not known.
    """

    def __init__(self, text: str) -> None:
        self.kernels = {name: prepare(entry) for name, entry in read_module(text).items()}
        self.executed: dict[str, set[int]] = {name: set() for name in self.kernels}

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[np.generic],
        memory: DeviceMemory,
        *,
        seed: int = 0,
        most_steps: int = _MOST_STEPS,
    ) -> None:
        """Execute an entry for all threads of a grid.

        Args:
            name: name of the entry.
            grid, block: blocks, and threads of a block; one to three numbers each.
            arguments: scalars, addresses as 64-bit integers.
            memory: what the threads may use, new for each launch.
            seed: of the order in which teams run and threads take their turns.
            most_steps: blocks of instructions, after which a team counts as endless.

        Raises:
            PtxError: the launch did what it must not do.
        """
        kernel, order = self.kernels[name], np.random.default_rng(seed)
        parameters = _bind(kernel.entry, arguments)
        block_threads = int(np.prod(block))
        n_threads = int(np.prod(grid)) * block_threads
        n_together = max(1, _TEAM // block_threads) * block_threads
        for first in order.permutation(np.arange(0, n_threads, n_together)).tolist():
            numbers = np.arange(first, min(n_threads, first + n_together))
            positions = _place(numbers, grid, block)
            team = Team(kernel.entry, first, block_threads, positions, parameters, memory, order)
            with np.errstate(all="ignore"):
                self._run(kernel, team, most_steps)

    def _run(self, kernel: Kernel, team: Team, most_steps: int) -> None:
        n_blocks, n_steps, executed = len(kernel.steps), 0, self.executed[kernel.entry.name]
        is_waiting = np.zeros(len(team.at), np.bool_)
        while (number := int(np.where(is_waiting, n_blocks, team.at).min())) < n_blocks:
            n_steps += 1
            if n_steps > most_steps:
                raise EndlessError(f"{kernel.entry.name}: not done after {most_steps} steps")
            picked = np.flatnonzero(team.at == number)
            exchange = kernel.steps[number][0][1] if kernel.steps[number] else None
            if isinstance(exchange, Exchange):
                is_waiting[picked] = True
                picked = exchange.find_ready(team, picked)
                is_waiting[picked] = False
                if not len(picked):
                    continue
            team.at[picked] = number + 1
            for instruction, step in kernel.steps[number]:
                executed.add(instruction.line)
                guarded(kernel.entry, instruction, step, team, picked)
        refuse_waiting(kernel.entry.name, team, is_waiting)


def _bind(entry: Entry, arguments: Sequence[np.generic]) -> dict[str, Values]:
    n, parameters = len(entry.parameters), {}
    if len(arguments) != n:
        raise PtxError(f"{entry.name}: {len(arguments)} arguments, expected {n}")
    for (name, kind), argument in zip(entry.parameters.items(), arguments, strict=True):
        value = np.array([argument])
        is_float = value.dtype.kind == "f"
        if value.itemsize != DTYPES[kind].itemsize or is_float != (kind[0] == "f"):
            raise PtxError(f"{name}: {value.dtype}, expected {kind}")
        parameters[name] = value.view(DTYPES[kind])
    return parameters


def _place(
    numbers: npt.NDArray[np.int64], grid: Sequence[int], block: Sequence[int]
) -> dict[str, Values]:
    """Return the special registers of threads."""
    blocks, threads = np.divmod(numbers, np.prod(block))
    positions: dict[str, Values] = {}
    for name, size, of in (("tid", block, threads), ("ctaid", grid, blocks)):
        below = of
        for axis, length in zip("xyz", (*size, 1, 1), strict=False):
            below, at = np.divmod(below, length)
            positions[f"%{name}.{axis}"] = at.astype(np.uint32)
            positions[f"%n{name}.{axis}"] = np.full(len(numbers), length, np.uint32)
    return positions
