"""AlternatingSampler: half of the environments step while the agent acts for the other half."""

from __future__ import annotations

from collections.abc import Sequence

from parllel.cages import Cage
from parllel.samplers.basic_sampler import BasicSampler


class AlternatingSampler(BasicSampler):
    """Collect what `BasicSampler` collects, in two groups of cages that take turns.

    While the agent acts for one group, the environments of the other one step: with cages that
    have workers of their own, neither waits for the other where both take as long. The order of
    all calls is fixed, so the same seeds give the same batches. The agent is asked for one
    group's rows at a time, so it must not keep a state for each environment.

    Args:
        cages, agent, samples: as for `BasicSampler`; two cages at least. The groups are the first
            and the last of them, with as equal numbers of environments as their order allows.

    Raises:
        ValueError: as for `BasicSampler`; or there is only one cage.
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
        for t in range(self.batch_T):
            for group in self._groups:
                if t:
                    self._finish(group, t - 1)
                group.act(self.agent, t)
        for group in self._groups:
            self._finish(group, self.batch_T - 1)
