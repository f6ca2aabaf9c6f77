"""Recorder: the protocol of what a sampler tells of its batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from parllel.tree import ArrayDict


class Recorder(Protocol):
    """An object that a sampler tells of the batches it writes, as `replays.ReplayBuffer`.

    If it has an attribute `keeps_terminated` that is true, it is given the final observations of
    episodes that terminated, too, as `replays.HindsightReplayBuffer` needs them.

    Example:
        >>> class Counter:  # counts the batches and the episodes that were cut off
        ...     def __init__(self, samples):
        ...         self.samples, self.n_batches, self.n_cut = samples, 0, 0
        ...     def restart(self):
        ...         self.samples.reset()
        ...     def begin_batch(self):
        ...         pass
        ...     def add_final_obs(self, t, final_obs):
        ...         self.n_cut += len(final_obs)
        ...     def end_batch(self):
        ...         self.n_batches += 1
        >>> recorder: Recorder = Counter(ArrayDict())
    """

    samples: ArrayDict

    def restart(self) -> None:
        """Move the tree's window to where first observations go: a reset of all follows."""

    def begin_batch(self) -> None:
        """Prepare for a batch: the sampler is about to rotate the window."""

    def add_final_obs(self, t: int, final_obs: Mapping[int, object]) -> None:
        """Keep the true final observations of episodes that were cut off with step t.

        Episodes that terminated are left out, except for a recorder with `keeps_terminated`: of
        these, what follows counts for nothing.

        Args:
            t: the step within the batch.
            final_obs: the observations by the column of their environment.
        """

    def end_batch(self) -> None:
        """Take the batch, which the sampler has written."""
