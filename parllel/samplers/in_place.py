"""InPlace: environments read and write the rows of a sample tree in host memory themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parllel import cuda
from parllel.arrays import Array
from parllel.samplers.transfer import batch_shape_of, output_branches
from parllel.tree import ArrayDict
from parllel.tree.errors import raise_at
from parllel.tree.row_parts import first_rows, take_first_rows


class InPlace:
    """A `Transfer` that copies nothing: the host rows are rows of the tree.

    Where a GPU can read the memory too (`pinned`, `managed`), the host waits for the caller's
    current stream before the window moves and before a reset, so that rows which queued work has
    yet to read are not overwritten.

    Args:
        samples: the sampler's tree.
        columns: the environments of this transfer, as columns of the tree; all by default.

    Example:
        >>> import numpy as np
        >>> from parllel.tree import ArrayDict
        >>> samples = ArrayDict({"action": Array((4, 2), np.int64)})
        >>> for name in ("reward", "terminated", "truncated"):
        ...     samples[name] = Array((4, 2), np.float32)
        >>> samples["observation"] = Array((4, 2), np.float32, padding=1)
        >>> transfer = InPlace(samples)
        >>> transfer.move()
        True
        >>> transfer.host_rows[0]["observation"][...] = 7  # as environments do in step 0
        >>> samples["observation"][1].to_ndarray()
        array([7., 7.], dtype=float32)
    """

    copies_ahead = False

    def __init__(self, samples: ArrayDict, columns: range | None = None) -> None:
        leaves = [leaf for _, leaf in samples.walk()]
        self._samples = samples
        self._batch_T, batch_B = batch_shape_of(samples)[:2]
        columns = range(batch_B) if columns is None else columns
        is_all = len(columns) == batch_B
        self._columns = None if is_all else slice(columns.start, columns.stop)
        self._is_moving = any(leaf.full_size > len(leaf) for leaf in leaves)
        self._is_read_by_gpu = any(leaf.is_for_gpu for leaf in leaves)
        self.host_rows: list[ArrayDict] = []
        self._action_rows: list[Any] = []  # Any: Rows, which are written without a look at them
        self._first: Array | ArrayDict | None = None

    def settle(self) -> None:
        """Wait for the caller's current stream, where a GPU can read the tree."""
        if self._is_read_by_gpu:
            cuda.synchronize()

    def move(self) -> bool:
        """Find the rows of each step, where the window moves within a larger buffer."""
        if self.host_rows and not self._is_moving:
            return False
        self.host_rows = [self._find_rows(t) for t in range(self._batch_T)]
        self._action_rows = [rows["action"] for rows in self.host_rows]
        return True

    def _find_rows(self, t: int) -> ArrayDict:
        rows = {name: self._row(name, t) for name in ("action", *output_branches(self._samples))}
        return ArrayDict({**rows, "observation": self._row("observation", t + 1)})

    def _row(self, name: str, t: int) -> Array | ArrayDict:
        branch = self._samples[name]
        row: Array | ArrayDict = branch[t] if self._columns is None else branch[t, self._columns]
        return row

    def send_actions(self, t: int, action: object, agent_info: Mapping[str, object]) -> bool:
        """Write the action to row t of the tree, where environments read it."""
        try:
            self._action_rows[t][...] = action
        except Exception as error:
            raise_at(("action",), error)
        return False

    def await_actions(self, t: int) -> None:
        """Do nothing: the host has written the action."""

    def start_outputs(self, t: int) -> None:
        """Do nothing: environments have written the tree."""

    def take_outputs(self, t: int) -> None:
        """Do nothing: environments have written the tree."""

    def first_rows(self) -> Array | ArrayDict:
        """Return the tree's row after the batch; whole samples for rows that have parts."""
        row = self._row("observation", self._batch_T)
        self._first = first_rows(row, row)
        return self._first

    def take_first(self) -> None:
        """Write the rows that have parts; environments have written all others."""
        row = self._row("observation", self._batch_T)
        assert self._first is not None  # first_rows is called before
        take_first_rows(row, self._first, row)

    def take_up(self) -> None:
        """Do nothing: all is in the tree."""

    def close(self) -> None:
        """Do nothing: all memory is the tree's."""
