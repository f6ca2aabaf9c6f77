"""ReplayDraws: an algorithm's minibatches of a replay buffer, their weights and priorities."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parllel.replays import Prefetcher
from parllel.replays.base_replay import BaseReplay
from parllel.schedules import Schedule, value_at
from parllel.tree import ArrayDict


class ReplayDraws:
    """Draw minibatches of one size, with or without priorities, at once or ahead of time.

    Args:
        replay: the buffer, which draws by priority if it has `update_priorities`.
        batch_size: number of transitions, or of sequences, of a minibatch.
        beta: exponent of the importance weights of a buffer with priorities, a number or a
            schedule; None leaves it to the buffer.
        prefetcher: draws the minibatches of `replay` ahead, of the same size.

    Raises:
        ValueError: there is a `beta` for a buffer without priorities, or the prefetcher draws from
            another buffer.

    Example:
        >>> import numpy as np
        >>> from parllel import Array
        >>> from parllel.replays import ReplayBuffer
        >>> samples = ArrayDict(
        ...     {
        ...         "observation": Array((2, 1), np.float32, full_size=4, padding=1),
        ...         "reward": Array((2, 1), np.float32, full_size=4),
        ...         "terminated": Array((2, 1), bool, full_size=4),
        ...         "truncated": Array((2, 1), bool, full_size=4),
        ...     }
        ... )
        >>> replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
        >>> replay.restart()  # a sampler calls this and the next three methods
        >>> replay.begin_batch()
        >>> samples.rotate()
        >>> replay.end_batch()
        >>> draws = ReplayDraws(replay, batch_size=8)
        >>> minibatch = draws.next()
        >>> draws.weigh(minibatch["reward"] + 1, minibatch)  # there are no priorities
        tensor([1., 1., 1., 1., 1., 1., 1., 1.])
    """

    def __init__(
        self,
        replay: BaseReplay[Any],
        batch_size: int,
        *,
        beta: float | Schedule | None = None,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        # Any: what it is given differs between transitions and sequences.
        self._priorities: Any = replay if hasattr(replay, "update_priorities") else None
        if beta is not None and self._priorities is None:
            raise ValueError(
                "beta: got one for a buffer without priorities; use a PrioritizedReplayBuffer"
            )
        if prefetcher is not None and prefetcher.replay is not replay:
            raise ValueError("prefetcher: it draws from another buffer than replay")
        self._replay, self._prefetcher = replay, prefetcher
        self._batch_size, self._beta = batch_size, beta

    def set_progress(self, progress: float) -> None:
        """Set `beta` to what it is at some progress of the run, in [0, 1]."""
        if self._beta is not None and self._priorities is not None:
            self._priorities.beta = value_at("beta", self._beta, progress, least=0)

    def next(self) -> ArrayDict:
        """Return a minibatch, as `ReplayBuffer.sample` gives it. Nothing waits for a device.

        Raises:
            RuntimeError: the buffer has no transition yet.
            ValueError: the prefetcher has another batch size.
        """
        size = self._batch_size
        if self._prefetcher is None:
            return self._replay.sample(size)
        minibatch = self._prefetcher.next()
        if len(minibatch["index"]) != size:
            raise ValueError(
                f"prefetcher: got a minibatch of {len(minibatch['index'])} transitions, expected"
                f" {size}, the batch_size of the settings; make both alike"
            )
        return minibatch

    def weigh(self, losses: Tensor, minibatch: ArrayDict) -> Tensor:
        """Return losses [..., N], each times the importance weight of its item if there is one."""
        if self._priorities is None:
            return losses
        weighed: Tensor = minibatch["weight"] * losses
        return weighed

    def give_back(self, minibatch: ArrayDict, error: Tensor, mask: Tensor | None = None) -> None:
        """Make errors the priorities of what was drawn.

        Args:
            minibatch: the minibatch.
            error: float32 [N] of transitions, [K, N] of the steps of sequences; of any sign.
            mask: bool [K, N], the steps that count, of sequences.
        """
        if self._priorities is not None:
            masks = () if mask is None else (mask,)
            self._priorities.update_priorities(minibatch["index"], error, *masks)
