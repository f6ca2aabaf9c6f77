"""CommandForms: what commands have in common, which a worker is told once.

The steps of a batch read and write arrays that differ only in where they begin: they are commands
of one form. A command is sent as the number of its form and where its arrays begin, a few bytes.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array, RowWriter
from parllel.cages.cage import Command, Outputs
from parllel.cages.values.env_rows import Rows, Value, as_tree
from parllel.storages import Memory, Shared, aligned
from parllel.tree import ArrayDict, RowParts, TreePath, dict_map, path_text

_Key: TypeAlias = tuple[object, ...]

REPLY_BLOCK = 0
"""Number of the first block, which carries the arrays of replies."""


class FormLeaf(NamedTuple):
    """An array [n, ...] in a block of shared memory; commands of one form differ in its offset.

    >>> FormLeaf(block=1, shape=(4,), strides=(8,), dtype=np.dtype(np.float64)).block
    1
    """

    block: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class CommandForm(NamedTuple):
    """The part that commands have in common if only the offsets of their arrays differ.

    >>> leaf = FormLeaf(1, (2,), (8,), np.dtype(np.float64))
    >>> form = CommandForm("step", (leaf, leaf), 0, Outputs(reward=1))

    Args:
        kind: as for `Command`.
        leaves: all arrays that the command reads or writes.
        action: the index of the action in `leaves`, or a tree of such indices; None where the kind
            takes no action.
        outputs: the same for each output; None for results that are returned.
    """

    kind: str
    leaves: tuple[FormLeaf, ...]
    action: int | ArrayDict | None
    outputs: Outputs


class CommandLeaf(NamedTuple):
    """One array that a command reads or writes, as `command_leaves` yields it.

    >>> CommandLeaf(("out_reward",), None, np.zeros(2), is_read=False, writer=None).rows.shape
    (2,)

    Args:
        path: the names that lead to it, as ("out_observation", "camera").
        given: the leaf as the caller gave it.
        rows: the array.
        is_read: whether the worker reads it and does not write it.
        writer: writes samples to the rows that it is a part of; None where it is no such part.
    """

    path: TreePath
    given: object
    rows: NDArray[Any]
    is_read: bool
    writer: RowWriter | None


class PackedCommand(NamedTuple):
    """A command as it is sent to a worker.

    >>> PackedCommand(form=0, offsets=bytes(8), copies_in=[], copies_out=[], blocks=[]).form
    0

    Args:
        form: the number of its form.
        offsets: int64, a number for each leaf of the form: where it begins in its block, in bytes.
        copies_in: pairs of a stand-in and the rows that are copied to it before the command starts.
        copies_out: pairs of rows and the stand-in that is copied to them when the command is done.
        blocks: the memory that the command uses; it lives as long as the command.
    """

    form: int
    offsets: bytes
    copies_in: list[tuple[NDArray[Any], NDArray[Any]]]
    copies_out: list[tuple[NDArray[Any], NDArray[Any]]]
    blocks: list[Memory]


class _StandIn(NamedTuple):
    """Rows in shared memory that a worker uses instead of rows that it can't reach."""

    memory: Shared
    offset: int
    rows: NDArray[Any]


class _KnownForm(NamedTuple):
    """The number of a form, and for each leaf its stand-in; None where the worker can reach it."""

    number: int
    stand_ins: list[_StandIn | None]


class _PlacedLeaf(NamedTuple):
    """A leaf of a command, with the block that it is in; None where the worker can't reach it.

    It begins in the block at `offset`, in bytes.
    """

    leaf: CommandLeaf
    memory: Memory | None
    offset: int


class CommandForms:
    """The blocks of memory and the command forms of a cage, in the order of sending.

    Workers read and write arrays in `shared` and `pinned` memory themselves, and so they do in
    blocks that they inherited. For arrays in any other memory there are stand-ins in shared
    memory, which the cage copies from and to.

    >>> memory = Shared(100)
    >>> memory.acquire()
    >>> forms = CommandForms(memory, inherited=())
    >>> packed = forms.pack(Command("reset", None, Outputs(), Outputs()), None)
    >>> packed.form, forms.n_forms, forms.n_blocks
    (0, 1, 1)
    >>> forms.close()
    >>> memory.release()

    Args:
        reply_memory: the first block, which carries the arrays of replies.
        inherited: the blocks that the cage's workers have from their start.
    """

    def __init__(self, reply_memory: Shared, inherited: Collection[Memory]) -> None:
        self._inherited = inherited
        self._blocks: list[weakref.ref[Memory]] = []
        self._block_numbers: weakref.WeakKeyDictionary[Memory, int] = weakref.WeakKeyDictionary()
        self._stand_ins: dict[tuple[_Key, ...], list[_StandIn]] = {}  # of leaves that are alike
        self._known: dict[_Key, _KnownForm] = {}
        self._forms: list[CommandForm] = []
        self.add_block(reply_memory)

    @property
    def n_blocks(self) -> int:
        """Number of blocks so far; those that have been closed count, too."""
        return len(self._blocks)

    @property
    def n_forms(self) -> int:
        """Number of forms so far. A block is added only with a form that uses it."""
        return len(self._forms)

    def block(self, number: int) -> Memory | None:
        """Return a block; None where it has been closed, and no command uses it any more."""
        memory = self._blocks[number]()
        return None if memory is None or memory.is_closed else memory

    def form(self, number: int) -> CommandForm:
        """Return the form with this number."""
        return self._forms[number]

    def add_block(self, memory: Memory) -> int:
        """Return a block's number, a new one if it has none yet."""
        number = self._block_numbers.get(memory)
        if number is None:
            number = self._block_numbers[memory] = len(self._blocks)
            self._blocks.append(weakref.ref(memory))
        return number

    def pack(self, command: Command, action: Value | None) -> PackedCommand:
        """Return a command as it is sent: the number of its form, and where its arrays begin.

        Args:
            command: its rows are over the memory of its outputs.
            action: as the caller gave it; None where the kind takes none.

        Raises:
            TypeError: an action or an output holds Python objects.
            MemoryError: there is no memory for a stand-in.
        """
        found = command_leaves(command, action)
        leaves = [_PlacedLeaf(leaf, *self._find(leaf.given, leaf.rows)) for leaf in found]
        key = (*kind_of(command), *map(self._key_of, leaves))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._add_form(command, leaves)
        offsets: list[int] = []
        copies_in, copies_out = [], []
        for (leaf, _, offset), stand_in in zip(leaves, known.stand_ins, strict=True):
            offsets.append(offset if stand_in is None else stand_in.offset)
            if stand_in is not None and leaf.is_read:
                copies_in.append((stand_in.rows, leaf.rows))
            elif stand_in is not None:
                copies_out.append((leaf.rows, stand_in.rows))
        packed = struct.pack(f"<{len(offsets)}q", *offsets)
        blocks = [memory for _, memory, _ in leaves if memory is not None]
        return PackedCommand(known.number, packed, copies_in, copies_out, blocks)

    def _add_form(self, command: Command, leaves: list[_PlacedLeaf]) -> _KnownForm:
        unreached = iter(self._stand_ins_of([leaf for leaf in leaves if leaf.memory is None]))
        form_leaves: list[FormLeaf] = []
        stand_ins: list[_StandIn | None] = []
        for leaf, block, _ in leaves:
            rows, stand_in = leaf.rows, None
            if block is None:
                stand_in = next(unreached)
                rows, block = stand_in.rows, stand_in.memory
            number = self.add_block(block)
            form_leaves.append(FormLeaf(number, rows.shape, rows.strides, rows.dtype))
            stand_ins.append(stand_in)
        self._forms.append(form_of(command, form_leaves))
        return _KnownForm(len(self._forms) - 1, stand_ins)

    def _find(self, leaf: object, rows: NDArray[Any]) -> tuple[Memory | None, int]:
        """Return the block of a leaf's rows, None where no worker reaches it; and their offset."""
        if isinstance(leaf, Array):
            memory = leaf.memory
            if isinstance(memory, Shared) or memory in self._inherited:
                offset = memory.offset_of(rows)
                if offset is not None:  # otherwise the rows are a copy: of integer arrays' rows
                    return memory, offset
        return None, 0

    def _key_of(self, leaf: _PlacedLeaf) -> _Key:
        """Return the properties that leaves have in common in commands of one form."""
        key = key_of(leaf.leaf)
        if leaf.memory is None:
            return key
        return (*key, leaf.leaf.rows.strides, self.add_block(leaf.memory))

    def _stand_ins_of(self, leaves: list[_PlacedLeaf]) -> list[_StandIn]:
        """Return stand-ins for leaves, which all commands with such leaves use in turn."""
        key = tuple(self._key_of(leaf) for leaf in leaves)
        if leaves and key not in self._stand_ins:
            self._stand_ins[key] = self._allocate(leaves)
        return self._stand_ins[key] if leaves else []

    def _allocate(self, leaves: list[_PlacedLeaf]) -> list[_StandIn]:
        """Allocate stand-ins for leaves, all of them in one block of shared memory."""
        for placed in leaves:
            check_numbers(placed.leaf)
        memory = Shared(sum(aligned(placed.leaf.rows.nbytes) for placed in leaves))
        memory.acquire()
        stand_ins = []
        for placed in leaves:
            like = placed.leaf.rows
            offset = memory.take(like.nbytes)
            rows = memory.array(offset, like.shape, like.dtype)
            stand_ins.append(_StandIn(memory, offset, rows))
        return stand_ins

    def close(self) -> None:
        """Give the memory of the stand-ins back."""
        self._known.clear()
        while self._stand_ins:
            _, (stand_in, *_) = self._stand_ins.popitem()
            stand_in.memory.release()


def command_leaves(command: Command, action: Value | None) -> Iterator[CommandLeaf]:
    """Yield the leaves of a command's action, and then those of its outputs in their order.

    Args:
        command: its rows are over the memory of its outputs.
        action: as the caller gave it; None where the kind takes none.
    """
    if command.action is not None:
        for path, leaf, rows, writer in _walk(("action",), action, command.action):
            yield CommandLeaf(path, leaf, rows, True, writer)
    for name, given, own in zip(Outputs._fields, command.outputs, command.rows, strict=True):
        if own is not None:
            for path, leaf, rows, writer in _walk((f"out_{name}",), given, own):
                is_read = writer is not None and path[-1] in writer.only_read
                yield CommandLeaf(path, leaf, rows, is_read, writer)


def kind_of(command: Command) -> _Key:
    """Return what commands of one form have in common beside their leaves."""
    return command.kind, tuple(rows is not None for rows in command.rows)


def key_of(leaf: CommandLeaf) -> _Key:
    """Return what leaves have in common in commands of one form."""
    return leaf.path, leaf.writer, leaf.rows.shape, leaf.rows.dtype


def check_numbers(leaf: CommandLeaf) -> None:
    """Refuse a leaf of Python objects, which can't be sent as bytes."""
    if leaf.rows.dtype.hasobject:
        raise TypeError(
            f"{path_text(leaf.path)}: got Python objects, expected numbers: a worker gets no"
            " others; a SerialCage takes them"
        )


def form_of(command: Command, leaves: Sequence[FormLeaf]) -> CommandForm:
    """Return the form of a command.

    Args:
        command: any command of that form.
        leaves: where each of its leaves lies, in the order of `command_leaves`.
    """
    numbers = iter(range(len(leaves)))
    action = _number(command.action, numbers)
    outputs = Outputs(*(_number(rows, numbers) for rows in command.rows))
    return CommandForm(command.kind, tuple(leaves), action, outputs)


def rebuild_command(
    form: CommandForm, offsets: bytes, blocks: Mapping[int, NDArray[np.uint8]]
) -> Command:
    """Return a command in the worker that got it.

    Args:
        form: the form of the command.
        offsets: where its leaves begin, as in `PackedCommand`.
        blocks: uint8 [nbytes], all bytes of each block, by the block's number.

    Returns:
        The command; its outputs are the rows themselves.
    """
    begins = struct.unpack(f"<{len(form.leaves)}q", offsets)
    views = [
        np.ndarray(leaf.shape, leaf.dtype, blocks[leaf.block].data, begin, leaf.strides)
        for leaf, begin in zip(form.leaves, begins, strict=True)
    ]
    pick: Callable[[int], NDArray[Any]] = views.__getitem__
    rows = Outputs(*(None if tree is None else dict_map(pick, tree) for tree in form.outputs))
    action = None if form.action is None else dict_map(pick, form.action)
    return Command(form.kind, action, rows, rows)


def result_outputs(command: Command) -> Sequence[Any]:
    """Return the output of each result of a command in their order; None where it has none.

    `valid` is no result: it is written where there is an output, and never returned.
    """
    outputs = command.outputs[:-1]
    if command.kind == "reset":
        return command.outputs.observation, command.outputs.info
    return outputs if command.kind == "random_step" else outputs[1:]


def _walk(
    path: TreePath, given: object, rows: Rows, writer: RowWriter | None = None
) -> Iterator[tuple[TreePath, object, NDArray[Any], RowWriter | None]]:
    """Yield of all leaves of a tree the path, the leaf as the caller gave it, its rows and writer.

    A leaf has a writer where it is a part of rows that consist of several parts.
    """
    if isinstance(rows, np.ndarray):
        yield path, given, rows, writer
        return
    tree = as_tree(given)
    writer = rows.writer if isinstance(rows, RowParts) else None
    for name, branch in rows.items():
        yield from _walk((*path, name), tree[name], branch, writer)


def _number(rows: Rows | None, numbers: Iterator[int]) -> Any:
    """Return a tree like this one whose leaves are the next numbers."""
    return None if rows is None else dict_map(lambda _: next(numbers), rows)
