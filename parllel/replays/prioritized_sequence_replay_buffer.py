"""PrioritizedSequenceReplayBuffer: windows with large errors are drawn more often."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from parllel.arrays import Leaf
from parllel.arrays.interop import to_device, to_host
from parllel.ops.priorities import weigh_priorities
from parllel.ops.sides import contiguous
from parllel.ops.transitions import DrawState
from parllel.ops.window_priorities import (
    ErrorFormula,
    draw_windows_by_priority,
    refresh_windows,
    update_windows,
)
from parllel.replays.by_priority import ByPriority, check_number
from parllel.replays.sequence_memory import SequenceMemory
from parllel.replays.sequence_replay_buffer import EpisodeEnd, SequenceReplayBuffer
from parllel.tree import ArrayDict


class PrioritizedSequenceReplayBuffer(ByPriority[SequenceMemory], SequenceReplayBuffer):
    """Draw windows of steps in proportion to a priority, which the algorithm updates from errors.

    P[i] = p[i] / sum_k p[k],  p = (mixed + epsilon) ** alpha
    mixed = max_share * max_t abs(error[t]) + (1 - max_share) * mean_t abs(error[t])
    weight[i] = (N * P[i]) ** -beta / max_j (N * P[j]) ** -beta,  j in the minibatch

    where t counts the steps of a window that are learned from. How windows are drawn, what
    priority new ones have, and how exact it all is, is as for `PrioritizedReplayBuffer`.

    Minibatches have the branch `weight`, float32 [N], too. In device memory they are three
    launches.

    Args:
        samples, rng, length, burn_in, stride, episode_end, n_final_obs: as for
            `SequenceReplayBuffer`.
        alpha, beta, epsilon: as for `PrioritizedReplayBuffer`.
        max_share: share of the largest error in a priority, in [0, 1]; the mean has the rest.

    Raises:
        TypeError, ValueError, MemoryError: as for `SequenceReplayBuffer`; or a number is out of
            range.

    Source: Schaul et al. 2016, arXiv:1511.05952, section 3.3; Kapturowski et al. 2019 (R2D2),
        section 2.3, for the mix of errors.

    >>> from parllel import Array
    >>> samples = ArrayDict(
    ...     {
    ...         "observation": Array((4, 1), np.float32, full_size=8, padding=1),
    ...         "reward": Array((4, 1), np.float32, full_size=8),
    ...         "terminated": Array((4, 1), bool, full_size=8),
    ...         "truncated": Array((4, 1), bool, full_size=8),
    ...     }
    ... )
    >>> replay = PrioritizedSequenceReplayBuffer(samples, rng=np.random.default_rng(0), length=2)
    >>> replay.restart()  # a sampler calls this and the next three methods
    >>> replay.begin_batch()
    >>> samples.rotate()
    >>> replay.end_batch()
    >>> windows = replay.sample(3)
    >>> windows["weight"]
    tensor([1., 1., 1.])
    >>> error = np.float32([[2, 9, 9], [1, 0, 0]])  # [rows, windows]
    >>> replay.update_priorities(windows["index"], error, windows["mask"])
    """

    _setting_names: ClassVar[tuple[str, ...]] = (
        *SequenceReplayBuffer._setting_names,
        *("alpha", "epsilon", "max_share"),
    )

    def __init__(
        self,
        samples: ArrayDict,
        *,
        rng: np.random.Generator,
        length: int,
        burn_in: int = 0,
        stride: int = 1,
        episode_end: EpisodeEnd = "stop",
        n_final_obs: int | None = None,
        alpha: float = 0.9,
        beta: float = 0.6,
        epsilon: float = 1e-6,
        max_share: float = 0.9,
    ) -> None:
        for name, number in (("alpha", alpha), ("beta", beta), ("epsilon", epsilon)):
            check_number(name, number)
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share: got {max_share}, expected a number in [0, 1]")
        self.max_share = float(max_share)  # what JSON can hold
        super().__init__(
            samples,
            rng=rng,
            length=length,
            burn_in=burn_in,
            stride=stride,
            episode_end=episode_end,
            n_final_obs=n_final_obs,
        )
        self._begin_priorities(alpha=alpha, beta=beta, epsilon=epsilon, n_final_obs=n_final_obs)

    def update_priorities(self, index: Leaf, error: Leaf, mask: Leaf) -> None:
        """Give windows the priorities of new errors. On a device it is one launch.

        A window that was overwritten since it was drawn is left out, and so is one without an error
        that counts. One that is given twice gets the priority of the later errors in host memory,
        and of either ones on a device.

        Args:
            index: int64 [n], the windows to update, as the minibatch's `index` numbers them.
            error: float32 [K, n], the errors of their steps, of any sign. K may be any number: that
                of all rows, or of those behind the burn-in.
            mask: bool [K, n], the errors that count: the minibatch's `mask`, or its last K rows.
                A window with one of these that is NaN or infinite is left out, in host memory with
                a warning once; others may hold anything.

        Raises:
            ValueError: the arguments have other shapes or dtypes.
        """
        convert = to_device if self._is_on_gpu else to_host
        index, error, mask = convert(index), convert(error), convert(mask)
        if index.ndim != 1 or error.ndim != 2 or error.shape[1:] != index.shape:
            raise ValueError(
                f"update_priorities: index {index.shape} and error {error.shape}, expected (n,) and"
                " (rows, n)"
            )
        if mask.shape != error.shape:
            raise ValueError(
                f"update_priorities: mask {mask.shape} and error {error.shape}, expected the same;"
                " burn-in is cut off from both, or from none"
            )
        dtypes = [index.dtype, error.dtype, mask.dtype]
        if dtypes != [np.int64, np.float32, np.bool_]:
            raise ValueError(
                f"update_priorities: index, error and mask of {', '.join(map(str, dtypes))},"
                " expected int64, float32 and bool"
            )
        if not len(index):
            return
        index, error, mask = map(contiguous, (index, error, mask))
        if not self._is_on_gpu and not (is_finite := np.isfinite(error[mask])).all():
            self._warn_once(int(is_finite.sum()), is_finite.size)
        self._settle()
        formula = ErrorFormula(self._alpha, self._epsilon, np.float32(self.max_share))
        update_windows(
            self._windows,
            self._draws,
            self._priorities,
            formula,
            index=index,
            error=error,
            mask=mask,
        )

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "max_share": self.max_share}

    def _change_steps(self, begin: int, stop: int) -> None:
        super()._change_steps(begin, stop)
        # A window needs the steps before the one that it is named by, too. A step before the oldest
        # one may share its place with one that is being written.
        begin = max(begin, self._stop - self.full_size, 0)
        stop = min(stop + self.burn_in + 1, self._stop)
        refresh_windows(self._windows, self._draws, self._priorities, begin, stop - begin)

    def _draw(self, outputs: SequenceMemory, state: DrawState) -> int:
        n_missing = draw_windows_by_priority(self._windows, state, self._priorities, outputs.drawn)
        if not n_missing:
            weigh_priorities(self._windows.ring, state, outputs.drawn)
        return n_missing
