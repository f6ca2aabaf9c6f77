"""Team: threads that are executed together, with their registers."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ptx_machine.faults import UndefinedError, UnknownTextError
from ptx_machine.memory import DeviceMemory
from ptx_machine.number_types import DTYPES, as_type, read_literal
from ptx_machine.text import Entry

Values: TypeAlias = npt.NDArray[Any]
Picked: TypeAlias = npt.NDArray[np.intp]  # which threads of a team, in their order

WARP = 32  # threads that may exchange values: the lanes of a warp

_UNWRITTEN = 0xA5  # bytes of a register of a thread that wrote nothing there


class Team:
    """Some threads of a launch, their registers, and which block each is at.

    Args:
        entry: what they execute.
        first: number of the first thread of the grid, which is the first of its block.
        block_threads: threads of a block. The team is one of whole blocks.
        positions: values of the special registers, for each thread.
        parameters: the arguments, by the parameters' names.
        memory: what all threads of the launch use.
        order: a generator, for the order in which threads take their turns.
    """

    def __init__(
        self,
        entry: Entry,
        first: int,
        block_threads: int,
        positions: Mapping[str, Values],
        parameters: Mapping[str, Values],
        memory: DeviceMemory,
        order: np.random.Generator,
    ) -> None:
        n = len(positions["%tid.x"])
        self.entry, self.parameters, self.memory, self.order = entry, parameters, memory, order
        self.threads = np.arange(first + 1, first + n + 1, dtype=np.int32)
        self.at = np.zeros(n, np.int32)
        blocks, inner = np.divmod(np.arange(n), block_threads)
        self.warps = blocks * -(-block_threads // WARP) + inner // WARP
        self.lanes = (inner % WARP).astype(np.uint32)
        self._registers: dict[str, Values] = dict(positions)

    def read(self, operand: str, dtype: np.dtype, picked: Picked) -> Values:
        """Return an operand's values: a number, or a register of some threads."""
        if not operand.startswith("%"):
            return read_literal(operand, dtype)
        if operand not in self._registers:
            raise UndefinedError(f"{operand} is read before it is written")
        values = self._registers[operand]
        return as_type(values if len(picked) == len(self.at) else values[picked], dtype)

    def write(self, register: str, values: Values, picked: Picked) -> None:
        """Give a register of some threads other values."""
        kept = self._registers.get(register)
        if kept is None:
            kept = self._registers[register] = self._make(register)
        if values.itemsize > kept.itemsize:
            raise UnknownTextError(f"{register}: {values.dtype}, and the register has {kept.dtype}")
        if values.itemsize < kept.itemsize and kept.dtype.kind == "u":
            values = values.astype(f"{values.dtype.kind}{kept.itemsize}")  # with its sign, or zeros
        if len(picked) == len(self.at):
            kept[:] = as_type(values, kept.dtype)
        else:
            kept[picked] = as_type(values, kept.dtype)

    def by_lane(self, picked: Picked, values: Values) -> Values:
        """Return values of some threads as [warps, lanes]; 0 of other threads."""
        placed = np.zeros((self.warps[-1] + 1, WARP), values.dtype)
        placed[self.warps[picked], self.lanes[picked]] = values
        return placed

    def _make(self, register: str) -> Values:
        prefix = register.lstrip("%").rstrip("0123456789")
        if not register.startswith("%") or prefix not in self.entry.registers:
            raise UnknownTextError(f"{register}: no register is declared so")
        dtype = DTYPES[self.entry.registers[prefix]]
        if dtype == np.bool_:
            return np.ones(len(self.at), dtype)
        return np.full(len(self.at) * dtype.itemsize, _UNWRITTEN, np.uint8).view(dtype)
