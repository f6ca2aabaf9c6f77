"""SentForms: commands for a worker that shares no memory with its cage.

All arrays that a command reads are sent as the bytes of one buffer, and all that it writes come
back as those of another. Where each array lies is the command's form, which is sent once.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.cages.cage import Command
from parllel.cages.process.command_forms import (
    CommandForm,
    CommandLeaf,
    FormLeaf,
    check_numbers,
    command_leaves,
    form_of,
    key_of,
    kind_of,
    rebuild_command,
)
from parllel.cages.values.env_rows import Value
from parllel.storages import aligned

_INPUTS, _OUTPUTS = range(2)  # numbers of the blocks


class SentForm(NamedTuple):
    """A form of commands, as it is sent to a worker.

    >>> from parllel.cages.cage import Outputs
    >>> leaf = FormLeaf(1, (2,), (8,), np.dtype(np.float64))
    >>> form = CommandForm("reset", (leaf,), None, Outputs(reward=0))
    >>> made = SentForm(form, struct.pack("<q", 0), 0, 16).make()
    >>> made.outputs.nbytes, made.command.rows.reward.shape
    (16, (2,))

    Args:
        form: its leaves are dense, in block 0 where they are read, and in block 1 where written.
        offsets: int64, where each leaf begins in its block, in bytes.
        n_inputs, n_outputs: the bytes of the two blocks.
    """

    form: CommandForm
    offsets: bytes
    n_inputs: int
    n_outputs: int

    def make(self) -> MadeCommand:
        """Return the command over new memory of this process."""
        inputs, outputs = np.zeros(self.n_inputs, np.uint8), np.zeros(self.n_outputs, np.uint8)
        blocks = {_INPUTS: inputs, _OUTPUTS: outputs}
        return MadeCommand(rebuild_command(self.form, self.offsets, blocks), inputs, outputs)


class MadeCommand(NamedTuple):
    """A command in the worker, and the memory that it reads and writes.

    >>> from parllel.cages.cage import Outputs
    >>> none = np.zeros(0, np.uint8)
    >>> MadeCommand(Command("reset", None, Outputs(), Outputs()), none, none).command.kind
    'reset'
    """

    command: Command
    inputs: NDArray[np.uint8]
    outputs: NDArray[np.uint8]


class SentCommand(NamedTuple):
    """A command in the cage.

    >>> none = np.zeros(0, np.uint8)
    >>> SentCommand(number=3, inputs=none, copies_in=[], outputs=[]).number
    3

    Args:
        number: that of its form.
        inputs: uint8, what is sent with it.
        copies_in: pairs of a part of `inputs` and the rows that are copied to it before.
        outputs: for each array that is written, where it begins in the reply, and the rows.
    """

    number: int
    inputs: NDArray[np.uint8]
    copies_in: list[tuple[NDArray[Any], NDArray[Any]]]
    outputs: list[tuple[int, NDArray[Any]]]

    def write(self, written: NDArray[np.uint8]) -> None:
        """Copy what the worker has written to the rows of the caller.

        Args:
            written: uint8, the worker's second block; it may be read-only.
        """
        for offset, rows in self.outputs:
            rows[...] = np.ndarray(rows.shape, rows.dtype, written.data, offset)


class SentForms:
    """The command forms of a cage, in the order of sending.

    >>> from parllel.cages.cage import Outputs
    >>> rows = np.zeros(2)
    >>> command = Command("reset", None, Outputs(reward=rows), Outputs(reward=rows))
    >>> forms = SentForms()
    >>> packed = forms.pack(command, None)
    >>> made = forms.form(packed.number).make()
    >>> made.command.rows.reward[:] = 3.0
    >>> packed.write(made.outputs)
    >>> rows
    array([3., 3.])
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], int] = {}
        self._forms: list[SentForm] = []
        self._offsets: list[list[int]] = []
        self._inputs: list[NDArray[np.uint8]] = []  # of each form; commands use them in turn

    def form(self, number: int) -> SentForm:
        """Return the form with this number."""
        return self._forms[number]

    def pack(self, command: Command, action: Value | None) -> SentCommand:
        """Return a command as it is sent.

        Args:
            command: its rows are over the memory of its outputs.
            action: as the caller gave it; None where the kind takes none.

        Raises:
            TypeError: an action or an output holds Python objects.
        """
        leaves = list(command_leaves(command, action))
        key = (*kind_of(command), *map(key_of, leaves))
        number = self._known.get(key)
        if number is None:
            number = self._known[key] = self._add_form(command, leaves)
        inputs, copies_in, outputs = self._inputs[number], [], []
        for leaf, offset in zip(leaves, self._offsets[number], strict=True):
            rows = leaf.rows
            if leaf.is_read:
                part: NDArray[Any] = np.ndarray(rows.shape, rows.dtype, inputs.data, offset)
                copies_in.append((part, rows))
            else:
                outputs.append((offset, rows))
        return SentCommand(number, inputs, copies_in, outputs)

    def _add_form(self, command: Command, leaves: list[CommandLeaf]) -> int:
        ends, offsets, places = [0, 0], list[int](), list[FormLeaf]()
        for leaf in leaves:
            check_numbers(leaf)
            rows, block = leaf.rows, _INPUTS if leaf.is_read else _OUTPUTS
            strides = np.ndarray(rows.shape, rows.dtype).strides  # dense, whatever the caller's are
            places.append(FormLeaf(block, rows.shape, strides, rows.dtype))
            offsets.append(ends[block])
            ends[block] += aligned(rows.nbytes)
        packed = struct.pack(f"<{len(offsets)}q", *offsets)
        self._forms.append(SentForm(form_of(command, places), packed, *ends))
        self._offsets.append(offsets)
        self._inputs.append(np.zeros(ends[_INPUTS], np.uint8))
        return len(self._forms) - 1
