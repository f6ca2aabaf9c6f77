"""AlternatingSampler: half of the environments step while the agent acts for the other half."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from parllel.cages import Cage
from parllel.samplers.basic_sampler import BasicSampler


class AlternatingSampler(BasicSampler):
    """Collect the batches of `BasicSampler` from two groups of cages that take turns.

    While the agent acts for one group, the environments of the other group step. With cages that
    have workers, neither side waits where both take equally long. The order of all calls is fixed,
    so the same seeds give the same batches. The agent is asked for the rows of one group at a
    time, so it must not keep a state for each environment. One that treats environments apart, as
    a `QAgent` with an epsilon for each, is told which they are (`Part`).

    Args:
        cages, agent, samples: as for `BasicSampler`; at least two cages. The first cages make one
            group and the last cages the other, with as equal numbers of environments as their
            order allows.

    Raises:
        ValueError: as for `BasicSampler`; or there is only one cage.

    Example:
        >>> import numpy as np
        >>> from parllel.cages import SerialCage
        >>> from parllel.patterns import build_example, build_sample_tree
        >>> from parllel.testing.toy_envs import Clock
        >>> class Zeros:
        ...     def step(self, observation, *, deterministic=False):
        ...         return np.zeros(len(observation), np.int64), {}
        ...     def value(self, observation):
        ...         return np.zeros(len(observation), np.float32)
        >>> example = build_example(Clock, storage="local")
        >>> samples = build_sample_tree(example, Zeros(), batch_shape=(3, 4))
        >>> cages = [SerialCage(Clock, n_envs=2), SerialCage(Clock, n_envs=2)]
        >>> batch, _ = AlternatingSampler(cages, Zeros(), samples).collect_batch()
        >>> batch["reward"].to_ndarray()[:, 3]
        array([1., 2., 3.], dtype=float32)
    """

    def _split_cages(self, cages: Sequence[Cage]) -> list[tuple[Sequence[Cage], range]]:
        if len(cages) < 2:
            raise ValueError(
                f"cages: got {len(cages)}, expected 2 or more, to take turns; BasicSampler takes"
                " one"
            )
        ends = [sum(cage.n_envs for cage in cages[:n]) for n in range(1, len(cages))]
        n_first = min(range(len(ends)), key=lambda n: abs(2 * ends[n] - self.batch_B)) + 1
        middle = ends[n_first - 1]
        return [
            (cages[:n_first], range(middle)),
            (cages[n_first:], range(middle, self.batch_B)),
        ]

    def _collect_steps(self) -> None:
        first, second = self._groups
        for t in range(self.batch_T):
            if t:
                self._finish(first, t - 1)
                first.act(self.agent, t, meanwhile=partial(second.collect_ready, t - 1))
                self._finish(second, t - 1)
            else:
                first.act(self.agent, t)
            second.act(self.agent, t, meanwhile=partial(first.collect_ready, t))
        for group in self._groups:
            self._finish(group, self.batch_T - 1)
