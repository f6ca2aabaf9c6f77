"""TrajInfo: what is summed up along one episode; Episodes does so for many environments at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class TrajInfo:
    """Length and returns of one episode; subclass it to sum up more.

    A cage makes one at each reset and calls `step` for each environment step. An episode that
    never took a step is not reported.

    Args:
        discount: per step, of `discounted_return`.
    """

    discount: float = 1.0
    length: int = field(default=0, init=False)
    episode_return: float = field(default=0.0, init=False)
    discounted_return: float = field(default=0.0, init=False)
    _weight: float = field(default=1.0, init=False, repr=False, compare=False)

    def step(
        self,
        observation: Any,
        action: Any,
        reward: Any,
        terminated: bool,
        truncated: bool,
        info: dict[str, Any],
    ) -> None:
        """Take in one step.

        Args:
            observation: what the environment returned, before any reset.
            action, reward, terminated, truncated, info: of the same step.
        """
        reward = float(reward)  # a sum in float32 would lose digits over a long episode
        self.length += 1
        self.episode_return += reward
        self.discounted_return += self._weight * reward
        self._weight *= self.discount

    def metrics(self) -> dict[str, float]:
        """Return the numbers to be averaged over episodes and logged, by name."""
        return {
            "episode_length": float(self.length),
            "episode_return": float(self.episode_return),
            "episode_discounted_return": float(self.discounted_return),
        }


class Episodes:
    """Sum up an episode in each environment, for all of them at once.

    A TrajInfo with a `step` of its own is told each step; otherwise its sums are kept in arrays
    here, of the same bits, and no Python code runs for each environment.

    Args:
        make_traj_info: returns the summary of a new episode.
        n_envs: number of environments.

    Attributes:
        are_told: whether `tell` is to be called, and not `add`.
    """

    def __init__(self, make_traj_info: Callable[[], TrajInfo], n_envs: int) -> None:
        self._make_traj_info = make_traj_info
        self._n_envs = n_envs
        self._completed: list[TrajInfo] = []
        self.begin()

    def begin(self) -> None:
        """Begin an episode in each environment, and forget those under way."""
        self._trajs = [self._make_traj_info() for _ in range(self._n_envs)]
        self.are_told = any(type(traj).step is not TrajInfo.step for traj in self._trajs)
        self._n_steps = 0
        self._begun = np.zeros(self._n_envs, np.int64)  # the number of steps taken by then
        self._return, self._discounted = np.zeros((2, self._n_envs))
        self._weight = np.ones(self._n_envs)
        self._discount = np.array([traj.discount for traj in self._trajs])
        self._is_discounted = bool((self._discount != 1).any())

    def add(self, reward: NDArray[Any], skipped: Sequence[int] = ()) -> None:
        """Take in the rewards of a step, [n], but of the environments to be skipped."""
        self._n_steps += 1
        if np.count_nonzero(reward):
            reward = reward.astype(np.float64)
            self._return += reward
            self._discounted += self._weight * reward
        if self._is_discounted:
            self._weight *= self._discount
        if skipped:  # they are at the beginning of an episode
            self._clear(skipped)

    def tell(self, steps: Iterable[tuple[Any, ...]], skipped: Sequence[int] = ()) -> None:
        """Tell each summary its environment's step.

        Args:
            steps: observation, action, reward, terminated, truncated and info for each.
            skipped: environments to be left out.
        """
        for number, (traj, step) in enumerate(zip(self._trajs, steps, strict=True)):
            if number not in skipped:
                traj.step(*step)

    def end(self, numbers: Sequence[int]) -> None:
        """Complete the episodes of some environments, in this order, and begin the next ones."""
        for number in numbers:
            traj = self._trajs[number]
            if not self.are_told:
                traj.length = int(self._n_steps - self._begun[number])
                traj.episode_return = float(self._return[number])
                traj.discounted_return = float(self._discounted[number])
            self._completed.append(traj)
        self.forget(numbers)

    def forget(self, numbers: Sequence[int]) -> None:
        """Begin an episode in some environments, and forget those under way there."""
        for number in numbers:
            self._trajs[number] = self._make_traj_info()
            self._discount[number] = self._trajs[number].discount
            self._is_discounted |= self._trajs[number].discount != 1
        self._clear(numbers)

    def take_completed(self) -> list[TrajInfo]:
        """Return the episodes that ended since the last call, in the order of their ends."""
        completed, self._completed = self._completed, []
        return completed

    def put_back(self, completed: list[TrajInfo]) -> None:
        """Let these be the episodes that ended since the last call of `take_completed`."""
        self._completed = completed

    def _clear(self, numbers: Sequence[int]) -> None:
        places = list(numbers)
        self._begun[places] = self._n_steps
        self._return[places] = self._discounted[places] = 0
        self._weight[places] = 1
