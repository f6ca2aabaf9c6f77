"""CommandForms: what commands have in common, which a worker is told once.

The steps of a batch read and write arrays that differ only in where they begin: they are commands
of one form. A command is sent as the number of its form and where its arrays begin, a few bytes.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.cages.cage import Command, Outputs
from parllel.cages.env_rows import as_tree
from parllel.storages import Memory, Shared, aligned
from parllel.tree import TreePath, dict_map, path_text
from parllel.tree.frame_rows import PREVIOUS

REPLY_BLOCK = 0
"""Number of the first block, which is there for replies."""


class FormLeaf(NamedTuple):
    """An array in a block of shared memory, but for where it begins there.

    Args:
        block: the block's number.
        shape, strides, dtype: of the array, [n, ...].
    """

    block: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class CommandForm(NamedTuple):
    """What commands have in common that differ only in where their places begin.

    Args:
        kind: as for `Command`.
        leaves: all of them.
        action: number of a leaf, or tree of such; None where the kind takes no action.
        outputs: the same, for each result that has a place.
    """

    kind: str
    leaves: tuple[FormLeaf, ...]
    action: Any
    outputs: Outputs


class PackedCommand(NamedTuple):
    """What `CommandForms` made of a command.

    Args:
        form: number of its form.
        offsets: packed; where its leaves begin, as the worker gets it.
        copies_in: pairs of arrays: before the worker reads the first, the second is copied there.
        copies_out: pairs of arrays: when the worker has written the second, it is copied to the
            first.
        blocks: where the leaves are; kept as long as the command is.
    """

    form: int
    offsets: bytes
    copies_in: list[tuple[NDArray[Any], NDArray[Any]]]
    copies_out: list[tuple[NDArray[Any], NDArray[Any]]]
    blocks: list[Memory]


class _StandIn(NamedTuple):
    """What the worker uses in place of a leaf that it can't reach."""

    memory: Shared
    offset: int
    rows: NDArray[Any]


class _KnownForm(NamedTuple):
    """A form, and what stands in for its leaves; None for those that the worker can reach."""

    number: int
    stand_ins: list[_StandIn | None]


class _CommandLeaf(NamedTuple):
    """One leaf of a command's places."""

    path: TreePath
    rows: NDArray[Any]
    memory: Memory | None  # None where the worker can't reach it
    offset: int
    is_read: bool


class CommandForms:
    """The blocks and forms that a cage's commands use, in the order in which workers get them.

    Workers use places in `shared` and `pinned` memory, and in inherited blocks, themselves. For
    places in any other memory there are stand-ins in shared memory, which the cage copies from
    and to.

    Args:
        reply_memory: the first block.
        inherited: those that the cage's workers have.
    """

    def __init__(self, reply_memory: Shared, inherited: Collection[Memory]) -> None:
        self._inherited = inherited
        self._blocks: list[weakref.ref[Memory]] = []
        self._block_numbers: weakref.WeakKeyDictionary[Memory, int] = weakref.WeakKeyDictionary()
        self._stand_ins: dict[Any, list[_StandIn]] = {}  # used by all commands with such leaves
        self._known: dict[Any, _KnownForm] = {}
        self._forms: list[CommandForm] = []
        self.add_block(reply_memory)

    @property
    def n_blocks(self) -> int:
        """Number of blocks so far, those that were closed meanwhile among them."""
        return len(self._blocks)

    @property
    def n_forms(self) -> int:
        """Number of forms so far. No block is added without a form that uses it."""
        return len(self._forms)

    def block(self, number: int) -> Memory | None:
        """Return a block; None if it was closed meanwhile, and no command uses it any more."""
        memory = self._blocks[number]()
        return None if memory is None or memory.is_closed else memory

    def form(self, number: int) -> CommandForm:
        """Return a form."""
        return self._forms[number]

    def add_block(self, memory: Memory) -> int:
        """Return a block's number, a new one if it has none yet."""
        number = self._block_numbers.get(memory)
        if number is None:
            number = self._block_numbers[memory] = len(self._blocks)
            self._blocks.append(weakref.ref(memory))
        return number

    def pack(self, command: Command, action: Any) -> PackedCommand:
        """Find a command's form, and where its leaves begin.

        Args:
            command: with all places looked up.
            action: as the caller gave it; None where the kind takes none.

        Raises:
            TypeError: an action or a place is of Python objects.
            MemoryError: there is no memory for a stand-in.
        """
        parts = list(self._leaves_of(command, action))
        has_place = tuple(rows is not None for rows in command.rows)
        key = (command.kind, has_place, *(self._key_of(part) for part in parts))
        entry = self._known.get(key)
        if entry is None:
            entry = self._known[key] = self._add_form(command, parts)
        offsets: list[int] = []
        copies: tuple[list[Any], list[Any]] = ([], [])
        for part, stand_in in zip(parts, entry.stand_ins, strict=True):
            offsets.append(part.offset if stand_in is None else stand_in.offset)
            if stand_in is not None:
                pair = (stand_in.rows, part.rows) if part.is_read else (part.rows, stand_in.rows)
                copies[0 if part.is_read else 1].append(pair)
        packed = struct.pack(f"<{len(offsets)}q", *offsets)
        blocks = [part.memory for part in parts if part.memory is not None]
        return PackedCommand(entry.number, packed, *copies, blocks)

    def _add_form(self, command: Command, parts: list[_CommandLeaf]) -> _KnownForm:
        unreached = iter(self._stand_ins_of([part for part in parts if part.memory is None]))
        leaves: list[FormLeaf] = []
        stand_ins: list[_StandIn | None] = []
        for part in parts:
            rows, block, stand_in = part.rows, part.memory, None
            if block is None:
                stand_in = next(unreached)
                rows, block = stand_in.rows, stand_in.memory
            leaves.append(FormLeaf(self.add_block(block), rows.shape, rows.strides, rows.dtype))
            stand_ins.append(stand_in)
        numbers = iter(range(len(parts)))
        form = CommandForm(
            command.kind,
            tuple(leaves),
            _number(command.action, numbers),
            Outputs(*(_number(rows, numbers) for rows in command.rows)),
        )
        self._forms.append(form)
        return _KnownForm(len(self._forms) - 1, stand_ins)

    def _leaves_of(self, command: Command, action: Any) -> Iterator[_CommandLeaf]:
        """Yield all leaves: of the action, and then of the outputs in their order."""
        if command.action is not None:
            for path, leaf, rows in _walk(("action",), action, command.action):
                yield self._find(path, leaf, rows, is_read=True)
        for name, given, own in zip(Outputs._fields, command.outputs, command.rows, strict=True):
            if own is not None:
                for path, leaf, rows in _walk((f"out_{name}",), given, own):
                    yield self._find(path, leaf, rows, is_read=path[-1] == PREVIOUS)

    def _find(
        self, path: TreePath, leaf: Any, rows: NDArray[Any], *, is_read: bool
    ) -> _CommandLeaf:
        if isinstance(leaf, Array):
            memory = leaf.memory
            if isinstance(memory, Shared) or memory in self._inherited:
                offset = memory.offset_of(rows)
                if offset is not None:  # otherwise a copy, of a view made with integer arrays
                    return _CommandLeaf(path, rows, memory, offset, is_read)
        return _CommandLeaf(path, rows, None, 0, is_read)

    def _key_of(self, part: _CommandLeaf) -> Any:
        rows = part.rows
        if part.memory is None:
            return part.path, rows.shape, rows.dtype
        return part.path, rows.shape, rows.dtype, rows.strides, self.add_block(part.memory)

    def _stand_ins_of(self, parts: list[_CommandLeaf]) -> list[_StandIn]:
        """Return what stands in for leaves, in one block; a new one if there are no such yet."""
        key = tuple(self._key_of(part) for part in parts)
        if parts and key not in self._stand_ins:
            self._stand_ins[key] = self._allocate(parts)
        return self._stand_ins[key] if parts else []

    def _allocate(self, parts: list[_CommandLeaf]) -> list[_StandIn]:
        for part in parts:
            if part.rows.dtype.hasobject:
                raise TypeError(
                    f"{path_text(part.path)}: got Python objects, expected numbers: the worker of a"
                    " ProcessCage gets no others; a SerialCage takes them"
                )
        memory = Shared(sum(aligned(part.rows.nbytes) for part in parts))
        memory.acquire()
        stand_ins = []
        for part in parts:
            offset = memory.take(part.rows.nbytes)
            rows = memory.array(offset, part.rows.shape, part.rows.dtype)
            stand_ins.append(_StandIn(memory, offset, rows))
        return stand_ins

    def close(self) -> None:
        """Give the stand-ins back."""
        self._known.clear()
        while self._stand_ins:
            _, (stand_in, *_) = self._stand_ins.popitem()
            stand_in.memory.release()


def rebuild_command(
    form: CommandForm, offsets: bytes, blocks: Mapping[int, NDArray[np.uint8]]
) -> Command:
    """Return the command of a form whose leaves begin at these offsets: the worker's part.

    Args:
        form: of the command.
        offsets: of its leaves, packed.
        blocks: by their numbers, all bytes of each.

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
    """Return the places of a command's results in their order, None for those without one."""
    outputs = command.outputs
    if command.kind == "reset":
        return outputs.observation, outputs.info
    return outputs if command.kind == "random_step" else outputs[1:]


def _walk(path: TreePath, given: Any, rows: Any) -> Iterator[tuple[TreePath, Any, NDArray[Any]]]:
    """Yield the path, the leaf as it was given, and its rows, of all leaves of a place."""
    if rows.__class__ is np.ndarray:  # most of them
        yield path, given, rows
        return
    given = as_tree(given)
    for name, branch in rows.items():
        yield from _walk((*path, name), given[name], branch)


def _number(rows: Any, numbers: Iterator[int]) -> Any:
    """Return a tree like this one whose leaves are the next numbers."""
    return None if rows is None else dict_map(lambda _: next(numbers), rows)
