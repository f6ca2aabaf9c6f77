"""TrajInfo: the summary of one episode; and Episodes, those of many environments at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from parllel.cages.env_rows import Value


@dataclass
class TrajInfo:
    """Length and returns of one episode; subclass it to sum up more.

    A cage makes one at each reset and calls `step` for each environment step. An episode that
    never took a step is not reported.

    >>> traj = TrajInfo(discount=0.5)
    >>> for reward in (1, 1):
    ...     traj.step(None, None, reward, False, False, {})
    >>> traj
    TrajInfo(discount=0.5, length=2, episode_return=2.0, discounted_return=1.5)

    Args:
        discount: the factor per step in `discounted_return`.
    """

    discount: float = 1.0
    length: int = field(default=0, init=False)
    episode_return: float = field(default=0.0, init=False)
    discounted_return: float = field(default=0.0, init=False)
    _weight: float = field(default=1.0, init=False, repr=False, compare=False)

    def step(
        self,
        observation: Value,
        action: Value,
        reward: SupportsFloat,
        terminated: bool,
        truncated: bool,
        info: dict[str, Any],
    ) -> None:
        """Take in one step.

        Args:
            observation: the observation that the environment returned, before any reset.
            action: the action that it was given.
            reward, terminated, truncated, info: the rest of what it returned.
        """
        reward = float(reward)  # a sum in float32 would lose digits over a long episode
        self.length += 1
        self.episode_return += reward
        self.discounted_return += self._weight * reward
        self._weight *= self.discount

    def metrics(self) -> dict[str, float]:
        """Return the numbers to be averaged over episodes and logged, by name.

        `episode_discounted_return` is one of them where a discount other than 1 was given.
        """
        numbers = {
            "episode_length": float(self.length),
            "episode_return": float(self.episode_return),
        }
        if self.discount != 1:  # or else it would be the return once more
            numbers["episode_discounted_return"] = float(self.discounted_return)
        return numbers


class Episodes:
    """Sum up an episode in each environment, for all of them at once.

    A TrajInfo with a `step` of its own has that called for each step. Otherwise the sums are kept
    in arrays here, with the same bits, and no Python code runs for each environment.

    >>> import numpy as np
    >>> episodes = Episodes(TrajInfo, n_envs=2)
    >>> episodes.add(np.array([1.0, 2.0]))
    >>> episodes.end([1])
    >>> episodes.take_completed()[0].episode_return
    2.0

    Args:
        make_traj_info: returns the summary of a new episode.
        n_envs: number of environments.

    Attributes:
        are_told: whether summaries have a `step` of their own: then `tell` is called, not `add`.
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
        self._begun = np.zeros(self._n_envs, np.int64)  # self._n_steps when the episode began
        self._return, self._discounted = np.zeros((2, self._n_envs))
        self._weight = np.ones(self._n_envs)
        self._discount = np.array([traj.discount for traj in self._trajs])
        self._is_discounted = bool((self._discount != 1).any())

    def add(self, reward: NDArray[Any], skipped: Sequence[int] = ()) -> None:
        """Add the rewards of a step.

        Args:
            reward: [n].
            skipped: numbers of environments that took no step; their episodes begin after it.
        """
        self._n_steps += 1
        if np.count_nonzero(reward):
            reward = reward.astype(np.float64)
            self._return += reward
            self._discounted += self._weight * reward
        if self._is_discounted:
            self._weight *= self._discount
        if skipped:
            self._clear(skipped)

    def tell(self, steps: Iterable[tuple[Any, ...]], skipped: Sequence[int] = ()) -> None:
        """Call the `step` of each environment's summary.

        Args:
            steps: for each environment, its observation, action, reward, terminated, truncated and
                info.
            skipped: numbers of environments that took no step.
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
        """Have `take_completed` return these episodes, and none that ended since it was called."""
        self._completed = completed

    def _clear(self, numbers: Sequence[int]) -> None:
        index = list(numbers)  # a tuple would be an index of several axes
        self._begun[index] = self._n_steps
        self._return[index] = self._discounted[index] = 0
        self._weight[index] = 1
