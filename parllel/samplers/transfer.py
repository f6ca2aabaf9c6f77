"""Transfer: the contract of what brings time steps from environments to the sample tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from parllel.arrays import Array
from parllel.tree import ArrayDict, leaves_of

_OUTPUTS = ("observation", "reward", "terminated", "truncated", "env_info", "valid")


class Transfer(Protocol):
    """Brings actions to environments, and the results of their steps to the sample tree.

    For each step t a sampler calls `send_actions` with what the agent returned, and
    `await_actions`, lets the environments step, and calls `start_outputs` and `take_outputs`.
    Before and after a reset it calls `first_rows` and `take_first`.

    `InPlace` and `Staging` are the two transfers of the package; `InPlace` has an example.

    Attributes:
        host_rows: the memory of environments, in turn: step t uses item `t % len(host_rows)`.
            Each is a tree of Arrays [B, ...] in host memory with the branch `action`, which
            environments read, and the branches that they write: `observation` (the one that
            follows action t), `reward`, `terminated`, `truncated` and `env_info`; and `valid`,
            where the tree has it, which the sampler writes.
        copies_ahead: whether `start_outputs` does anything, so that an early call saves time.
    """

    host_rows: list[ArrayDict]
    copies_ahead: bool

    def settle(self) -> None:
        """Wait until no work reads the rows of the tree that the host is about to overwrite."""

    def move(self) -> bool:
        """Follow the tree's window after it has moved.

        Returns:
            Whether `host_rows` changed, so that the cages need new commands.
        """

    def send_actions(self, t: int, action: object, agent_info: Mapping[str, object]) -> bool:
        """Write the action of step t to the tree, and start to bring it to the host rows.

        Args:
            t: the step.
            action, agent_info: what the agent returned. They stay what they are until
                `await_actions` has returned.

        Returns:
            Whether `agent_info` went to the tree as well. Otherwise the sampler writes it, while
            the environments step.

        Raises:
            KeyError, TypeError, ValueError: the action does not fit the tree's rows.
        """

    def await_actions(self, t: int) -> None:
        """Wait until action t is there, and until the environments may write the host rows."""

    def start_outputs(self, t: int) -> None:
        """Start to bring the environments' results of step t to the tree: they are written."""

    def take_outputs(self, t: int) -> None:
        """Bring the environments' results of step t to the tree."""

    def first_rows(self) -> Array | ArrayDict:
        """Return the rows [B, ...] in host memory that first observations are written to."""

    def take_first(self) -> None:
        """Bring first observations to the row after the batch, which `rotate` moves to row 0."""

    def take_up(self) -> None:
        """Take over from the row after the batch what is kept from step to step; it was loaded."""

    def close(self) -> None:
        """Give back the memory that is not the tree's. A second call does nothing."""


def batch_shape_of(samples: ArrayDict) -> tuple[int, ...]:
    """Return the leading dimensions of a sample tree, (T, B) or as many as its rewards have."""
    (_, leaf), *_ = leaves_of(samples["reward"])
    shape: tuple[int, ...] = leaf.batch_shape
    return shape


def output_branches(samples: ArrayDict) -> list[str]:
    """Return the names of the branches that a step of the environments fills."""
    return [name for name in _OUTPUTS if name in samples]
