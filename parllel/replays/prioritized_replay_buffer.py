"""PrioritizedReplayBuffer: transitions with large errors are drawn more often."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from parllel.arrays import Leaf
from parllel.arrays.interop import to_device, to_host
from parllel.ops.priorities import (
    draw_by_priority,
    refresh_priorities,
    update_priorities,
    weigh_priorities,
)
from parllel.ops.sides import contiguous
from parllel.ops.transitions import DrawState
from parllel.replays.by_priority import ByPriority, check_number
from parllel.replays.random_shift import RandomShift
from parllel.replays.replay_buffer import ReplayBuffer
from parllel.replays.transition_memory import TransitionMemory
from parllel.tree import ArrayDict


class PrioritizedReplayBuffer(ByPriority[TransitionMemory], ReplayBuffer):
    """Draw transitions in proportion to a priority, which the algorithm updates from its errors.

    P[i] = p[i] / sum_k p[k],  p = (abs(error) + epsilon) ** alpha
    weight[i] = (N * P[i]) ** -beta / max_j (N * P[j]) ** -beta,  j in the minibatch

    Draws are stratified: the sum of all priorities is cut into as many equal parts as a minibatch
    has transitions, and one transition is drawn from each part. Transitions that can't be sampled
    (`ReplayBuffer`) have no priority.

    New transitions have the largest priority that updates gave since the batch before them was
    written; without such updates, that of the last updates there were, and 1 at first. So a single
    huge error counts until the next batch alone, and not for ever as in the paper. An error that is
    NaN or infinite gives no priority: its transition keeps the one that it has.

    Minibatches have the branch `weight`, float32, too. In device memory they are three launches.

    Args:
        samples, rng, n_steps, discount, n_final_obs, shift, keep_terminated: as for `ReplayBuffer`.
        alpha: exponent of priorities, 0 or more; with 0 all transitions come equally often.
        beta: exponent of weights, 0 or more; with 1 they undo priorities wholly. It is an
            attribute too, which may be changed in training.
        epsilon: number of 0 or more that is added to errors, so that each transition may be drawn.

    Raises:
        TypeError, ValueError, MemoryError: as for `ReplayBuffer`; or a number is out of range.

    Source: Schaul et al. 2016, arXiv:1511.05952, algorithm 1 and section 3.3.
    Error: priorities are kept as integers, rounded down to multiples of 2**-24, at least one and
        at most 2**37 / (steps of the ring). Sums and shares of them are exact, and a probability
        is off by 2**-62 (`test_draws_are_those_of_exact_arithmetic`).

    >>> from parllel import Array
    >>> samples = ArrayDict(
    ...     {
    ...         "observation": Array((2, 1), np.float32, full_size=4, padding=1),
    ...         "reward": Array((2, 1), np.float32, full_size=4),
    ...         "terminated": Array((2, 1), bool, full_size=4),
    ...         "truncated": Array((2, 1), bool, full_size=4),
    ...     }
    ... )
    >>> replay = PrioritizedReplayBuffer(samples, rng=np.random.default_rng(0))
    >>> replay.restart()  # a sampler calls this and the next three methods
    >>> replay.begin_batch()
    >>> samples.rotate()
    >>> replay.end_batch()
    >>> minibatch = replay.sample(4)
    >>> minibatch["weight"]
    tensor([1., 1., 1., 1.])
    >>> replay.update_priorities(minibatch["index"], error=np.float32([2, 2, 9, 9]))
    """

    _setting_names: ClassVar[tuple[str, ...]] = ("n_steps", "discount", "alpha", "epsilon")

    def __init__(
        self,
        samples: ArrayDict,
        *,
        rng: np.random.Generator,
        n_steps: int = 1,
        discount: float = 0.99,
        n_final_obs: int | None = None,
        alpha: float = 0.6,
        beta: float = 0.4,
        epsilon: float = 1e-6,
        shift: RandomShift | None = None,
        keep_terminated: bool = False,
    ) -> None:
        for name, number in (("alpha", alpha), ("beta", beta), ("epsilon", epsilon)):
            check_number(name, number)
        super().__init__(
            samples,
            rng=rng,
            n_steps=n_steps,
            discount=discount,
            n_final_obs=n_final_obs,
            shift=shift,
            keep_terminated=keep_terminated,
        )
        self._begin_priorities(alpha=alpha, beta=beta, epsilon=epsilon, n_final_obs=n_final_obs)

    def update_priorities(self, index: Leaf, error: Leaf) -> None:
        """Give transitions the priorities of new errors. On a device it is one launch.

        A transition that was overwritten since it was drawn is left out. One that is given twice
        gets the priority of the later error in host memory, and of either one on a device.

        Args:
            index: int64 [n], the transitions to update, as the minibatch's `index` numbers them.
            error: float32 [n], their errors, of any sign. One that is NaN or infinite is left out,
                in host memory with a warning once.

        Raises:
            ValueError: the arguments are no vectors of the same length, or have other dtypes.
        """
        convert = to_device if self._is_on_gpu else to_host
        index, error = convert(index), convert(error)
        if index.ndim != 1 or index.shape != error.shape:
            raise ValueError(
                f"update_priorities: index {index.shape} and error {error.shape}, expected vectors"
                " of the same length"
            )
        if index.dtype != np.int64 or error.dtype != np.float32:
            raise ValueError(
                f"update_priorities: index {index.dtype} and error {error.dtype}, expected int64"
                " and float32"
            )
        if not len(index):
            return
        index, error = map(contiguous, (index, error))
        if not self._is_on_gpu and not np.isfinite(error).all():
            self._warn_once(int(np.isfinite(error).sum()), len(error))
        self._settle()
        update_priorities(
            self._ring,
            self._draws,
            self._priorities,
            index=index,
            error=error,
            alpha=self._alpha,
            epsilon=self._epsilon,
        )

    def _change_steps(self, begin: int, stop: int) -> None:
        # A step before the oldest one may share its place with one that is being written.
        super()._change_steps(begin, stop)
        begin = max(begin, self._stop - self.full_size, 0)
        refresh_priorities(self._ring, self._draws, self._priorities, begin, stop - begin)

    def _draw(self, outputs: TransitionMemory, state: DrawState) -> int:
        ring, drawn = self._ring, outputs.drawn
        n_missing = draw_by_priority(ring, state, self._priorities, drawn)
        if not n_missing:
            weigh_priorities(ring, state, drawn)
        return n_missing
