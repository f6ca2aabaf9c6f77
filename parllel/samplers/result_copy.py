"""ResultCopy: what an agent returned on a device goes to the tree and to environments at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array, ArraySpec
from parllel.arrays.device_rows import locate_rows
from parllel.cuda import Stream
from parllel.ops.table_copy import ENTRY_NUMBERS, Pieces, TableCopy, find_pieces, most_pieces
from parllel.tree import ArrayDict, leaves_of
from parllel.tree.errors import raise_at


class _Target(NamedTuple):
    """Where the rows of a leaf go in each step."""

    root: Array  # its window tells which rows of the ring are those of the batch
    begin: int  # address of the first column that is written, in the first row of the ring
    end: int  # address behind the ring
    step_nbytes: int
    shape: tuple[int, ...]  # of the rows of one step
    dtype: np.dtype[Any]
    device: int


class _Found(NamedTuple):
    """Where the rows of a branch's leaves lie, and what a copy of them is made of."""

    addresses: list[int]
    pieces: list[Pieces]


class ResultCopy:
    """One launch for each time step, which takes an agent's results to a tree in device memory.

    It reads the results where they are, if they are on the device and have the shapes and dtypes of
    the tree's rows; integers may be wider than the tree's. Rows of `action` go to the tree, and to
    page-locked memory, where environments read them; rows of `agent_info` go to the tree.

    Another action (a list, an array of the host, another dtype) is written to device memory in
    between first, as an Array writes it. Of such an agent_info no leaf is taken.

    Before the next step, the host has to wait for an event behind the launch, as its table is
    written anew. The agent's results have to stay until then.

    Args:
        samples: the sampler's tree, all of it in device memory.
        columns: the environments whose rows are copied, as columns of the tree.
        slots: for each staged step the rows of `action` alone, a tree in page-locked memory.
        between: the same rows in device memory, for actions that can't be read where they are.
        table: Array of `table_spec` in page-locked memory.

    Example:
        >>> from parllel.testing import simulated_cuda
        >>> with simulated_cuda("lazy"):
        ...     samples = ArrayDict({"action": Array((4, 2), np.int32, storage="device")})
        ...     rows = ArraySpec.of((2,), np.int32)
        ...     slot = ArrayDict({"action": Array.from_spec(rows, "pinned")})
        ...     between = ArrayDict({"action": Array.from_spec(rows, "device")})
        ...     table = Array.from_spec(table_spec(samples, 2), "pinned")
        ...     copy = ResultCopy(samples, range(2), [slot], between, table)
        ...     stream, is_taken = copy.run(1, 0, [5, 6], {})
        ...     samples["action"][1].to_ndarray(), slot["action"].to_ndarray()  # it has waited
        (array([5, 6], dtype=int32), array([5, 6], dtype=int32))
    """

    def __init__(
        self,
        samples: ArrayDict,
        columns: range,
        slots: Sequence[ArrayDict],
        between: ArrayDict,
        table: Array,
    ) -> None:
        self._n_envs = len(columns)
        self._action, self._info = samples["action"], samples.get("agent_info", ArrayDict())
        # Rows that are stored in parts are not bytes that could be copied.
        self._takes_info = all(leaf.row_writer is None for _, leaf in leaves_of(self._info))
        self._to_action = [_target_of(leaf, columns) for _, leaf in leaves_of(self._action)]
        self._to_info = [
            _target_of(leaf, columns) for _, leaf in leaves_of(self._info) if self._takes_info
        ]
        places = sorted((each.begin, each.end) for each in (*self._to_action, *self._to_info))
        self._begins, self._ends = ([place[side] for place in places] for side in (0, 1))
        self._step_nbytes = self._in_order(lambda target: target.step_nbytes)
        self._slots = [[_address_of(leaf) for _, leaf in slot.walk()] for slot in slots]
        self._between = between["action"]
        self._of_between = self._locate(self._action, self._to_action, self._between)
        self._table = table
        self._copied: list[Pieces] = []  # what `_copy` was prepared for
        self._copy: TableCopy
        self.move()

    def move(self) -> None:
        """Follow the tree's window after it has moved."""
        first_rows = self._in_order(
            lambda target: target.begin + target.root.window_begin * target.step_nbytes
        )
        self._first_rows = [first_rows.copy() for _ in self._slots]
        n_actions = len(self._to_action)
        for rows, slot in zip(self._first_rows, self._slots, strict=True):
            rows[n_actions : 2 * n_actions] = slot

    def run(
        self, t: int, slot: int, action: object, agent_info: Mapping[str, object]
    ) -> tuple[Stream, bool]:
        """Launch the copy in the caller's current stream. Returns at once.

        Args:
            t: the step, as a row of the tree's window.
            slot: number of the staged step from which environments read the action.
            action, agent_info: what the agent returned.

        Returns:
            The stream of the launch; and whether agent_info was taken.

        Raises:
            KeyError, TypeError, ValueError: the action does not fit the tree; nothing was launched.
        """
        try:
            of_action = self._locate(self._action, self._to_action, action)
            if of_action is None:
                self._between[...] = action
                of_action = self._of_between
        except Exception as error:
            raise_at(("action",), error)
        assert of_action is not None  # the rows between are like the tree's
        addresses, copied = 2 * of_action.addresses, 2 * of_action.pieces
        of_info = None
        if self._takes_info:
            of_info = self._locate(self._info, self._to_info, agent_info)
        if of_info is not None:
            addresses, copied = addresses + of_info.addresses, copied + of_info.pieces
        if copied != self._copied:
            table = self._table.to_ndarray()
            self._copy = TableCopy(copied, table, self._table.to_cupy())
            self._copied = copied
        written = self._first_rows[slot] + t * self._step_nbytes
        stream = self._copy.run(written, np.array(addresses, np.int64), self._n_envs)
        return stream, of_info is not None

    def _in_order(self, number_of: Callable[[_Target], int]) -> NDArray[np.int64]:
        """Return a number for each leaf in the order of a launch; 0 for those of the slots."""
        action, info = ([*map(number_of, each)] for each in (self._to_action, self._to_info))
        return np.array([*action, *[0] * len(action), *info], np.int64)

    def _locate(
        self, branch: Array | ArrayDict, targets: Sequence[_Target], value: object
    ) -> _Found | None:
        """Return where a branch's rows lie; None where a leaf of it can't be read there."""
        values: list[object] = []
        if not _take_leaves(branch, value, values):
            return None
        found = _Found([], [])
        for target, each in zip(targets, values, strict=True):
            rows = locate_rows(each)
            if rows is None or rows.shape != target.shape or rows.device != target.device:
                return None
            pieces = find_pieces(rows.shape, target.dtype, rows.strides, rows.dtype)
            if pieces is None or self._is_written(rows.address, pieces.source_nbytes):
                return None
            found.addresses.append(rows.address)
            found.pieces.append(pieces)
        return found

    def _is_written(self, address: int, nbytes: int) -> bool:
        """Whether bytes may be among those that a launch writes, in no order."""
        at = bisect_left(self._begins, address + nbytes)
        return at > 0 and address < self._ends[at - 1]


def table_spec(samples: ArrayDict, n_envs: int) -> ArraySpec:
    """Return the spec of the table that a `ResultCopy` needs.

    Args:
        samples: the sampler's tree.
        n_envs: number of columns.
    """
    n_pieces = 0
    for name, n_copies in (("action", 2), ("agent_info", 1)):
        for _, leaf in leaves_of(samples.get(name, ArrayDict())):
            n_pieces += n_copies * most_pieces((n_envs, *leaf.shape[2:]), leaf.dtype)
    return ArraySpec.of((n_pieces, ENTRY_NUMBERS), np.int64)


def _target_of(leaf: Array, columns: range) -> _Target:
    ring = leaf.full.to_cupy()
    step_nbytes = ring.strides[0]
    first, row_nbytes = ring.data, step_nbytes // ring.shape[1]
    return _Target(
        leaf,
        first.ptr + columns.start * row_nbytes,
        first.ptr + ring.nbytes,
        step_nbytes,
        (len(columns), *ring.shape[2:]),
        leaf.dtype,
        first.device_id,
    )


def _address_of(leaf: Array) -> int:
    address: int = leaf.to_cupy().data.ptr
    return address


def _take_leaves(branch: Array | ArrayDict, value: object, out_leaves: list[object]) -> bool:
    """Take the values of a branch's leaves in its order; tell whether their names are the same."""
    if not isinstance(branch, ArrayDict):
        out_leaves.append(value)
        return True
    if not isinstance(value, Mapping) or value.keys() != branch.keys():
        return False
    return all(_take_leaves(part, value[name], out_leaves) for name, part in branch.items())
