"""How a time step gets from environments to the sample tree, and actions to them: the contract.

And `InPlace`, for trees in host memory; `Staging`, for those on the device, has its own file.
"""

from __future__ import annotations

from typing import Any, Protocol

from parllel import cuda
from parllel.tree import ArrayDict
from parllel.tree.frame_rows import first_places, take_first_stacks

_OUTPUTS = ("observation", "reward", "terminated", "truncated", "env_info", "valid")


class Transfer(Protocol):
    """Brings actions to environments, and what comes of them to the sample tree.

    Attributes:
        host_rows: for step t the item `t % len(host_rows)` holds Arrays [B, ...] in host memory:
            the branch `action`, which environments read, and what they write: `observation` (the
            one that follows action t), `reward`, `terminated`, `truncated`, `env_info`; and `valid`
            where the tree has it, for the sampler itself. What is stored as frames has rows of a
            FrameArray or their places there (`frame_places`).
    """

    host_rows: list[ArrayDict]

    def settle(self) -> None:
        """Wait until nothing reads any more what the host is about to overwrite in the tree."""

    def move(self) -> bool:
        """Follow the tree's window, which has moved; tell whether `host_rows` are others now."""

    def action_rows(self, t: int) -> Any:
        """Return the place, [B, ...], that the agent's action t is written to."""

    def send_actions(self, t: int) -> None:
        """Start to bring action t to the host rows."""

    def await_actions(self, t: int) -> None:
        """Wait until action t is there, and until the environments' rows may be written."""

    def take_outputs(self, t: int) -> None:
        """Bring what environments have written in step t to the tree."""

    def first_rows(self) -> Any:
        """Return the place in host memory, [B, ...], that first observations are written to."""

    def take_first(self) -> None:
        """Bring them to the row after the batch, which `rotate` carries to row 0."""

    def close(self) -> None:
        """Give back memory that is not the tree's. Called again, it does nothing."""


def outputs_of(samples: ArrayDict) -> list[str]:
    """Return the names of the branches that a step of the environments gives."""
    return [name for name in _OUTPUTS if name in samples]


class InPlace:
    """Environments read and write the rows of a tree in host memory; nothing is staged.

    Where a GPU can read the memory too (`pinned`, `managed`), the host waits for the caller's
    current stream before the window moves and before a reset: what that still reads is not
    overwritten.

    Args:
        samples: of a sampler.
        columns: environments that are brought; all by default.
    """

    def __init__(self, samples: ArrayDict, columns: range | None = None) -> None:
        leaves = [leaf for _, leaf in samples.walk()]
        self._samples = samples
        self._batch_T, batch_B = samples["reward"].batch_shape[:2]
        columns = range(batch_B) if columns is None else columns
        is_all = len(columns) == batch_B
        self._columns = None if is_all else slice(columns.start, columns.stop)
        self._is_moving = any(leaf.full_size > len(leaf) for leaf in leaves)
        self._is_read_by_gpu = any(leaf.storage in ("pinned", "managed") for leaf in leaves)
        self.host_rows: list[ArrayDict] = []
        self._first: Any = None

    def settle(self) -> None:
        """Wait for the caller's current stream, where a GPU can read the tree."""
        if self._is_read_by_gpu:
            cuda.synchronize()

    def move(self) -> bool:
        """Find the rows of each step; tell whether they are others than before."""
        if self.host_rows and not self._is_moving:
            return False
        self.host_rows = [self._find_rows(t) for t in range(self._batch_T)]
        return True

    def _find_rows(self, t: int) -> ArrayDict:
        rows = {name: self._row(name, t) for name in ("action", *outputs_of(self._samples))}
        return ArrayDict({**rows, "observation": self._row("observation", t + 1)})

    def _row(self, name: str, t: int) -> Any:
        branch = self._samples[name]
        return branch[t] if self._columns is None else branch[t, self._columns]

    def action_rows(self, t: int) -> Any:
        """Return row t of the tree's `action`."""
        return self.host_rows[t]["action"]

    def send_actions(self, t: int) -> None:
        """Do nothing: environments read the tree."""

    def await_actions(self, t: int) -> None:
        """Do nothing: the action was written by the host."""

    def take_outputs(self, t: int) -> None:
        """Do nothing: environments have written the tree."""

    def first_rows(self) -> Any:
        """Return the tree's row after the batch; whole stacks for what is stored as frames."""
        row = self._row("observation", self._batch_T)
        self._first = first_places(row, row)
        return self._first

    def take_first(self) -> None:
        """Write the stacks; environments have written all else."""
        row = self._row("observation", self._batch_T)
        take_first_stacks(row, self._first, row)

    def close(self) -> None:
        """Do nothing: all memory is the tree's."""
