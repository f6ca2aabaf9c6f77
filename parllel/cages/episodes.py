"""TrajInfo: the summary of one episode; and Episodes, those of many environments at once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from parllel.cages.values.env_rows import Value

_FEW = 48  # environments whose numbers Python sums up in lists as fast as NumPy does in arrays


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

    Where an environment has several agents, `returns` has the return of each by its name, and the
    other returns are means over all agents of the environment: of a slot that is empty, the reward
    is 0.

    Args:
        discount: the factor per step in `discounted_return`.
    """

    discount: float = 1.0
    length: int = field(default=0, init=False)
    episode_return: float = field(default=0.0, init=False)
    discounted_return: float = field(default=0.0, init=False)
    returns: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _weight: float = field(default=1.0, init=False, repr=False, compare=False)

    def step(
        self,
        observation: Value,
        action: Value,
        reward: Any,  # a number; or numbers of agents, an array or a dictionary
        terminated: Any,  # a flag, or one for each agent
        truncated: Any,
        info: dict[str, Any],
    ) -> None:
        """Take in one step.

        Args:
            observation: the observation that the environment returned, before any reset.
            action: the action that it was given.
            reward, terminated, truncated, info: the rest of what it returned.
        """
        if self.returns:
            reward = self._mean_of(reward)
        reward = float(reward)  # a sum in float32 would lose digits over a long episode
        self.length += 1
        self.episode_return += reward
        self.discounted_return += self._weight * reward
        self._weight *= self.discount

    def _mean_of(self, reward: Any) -> float:
        """Add the reward of each agent to its return; return their mean."""
        own = [reward[name] for name in self.returns] if isinstance(reward, Mapping) else reward
        numbers: list[float] = [*map(float, own)]
        for name, number in zip(self.returns, numbers, strict=True):
            self.returns[name] += number
        return sum(numbers) / len(numbers)

    def metrics(self) -> dict[str, float]:
        """Return the numbers to be averaged over episodes and logged, by name.

        `episode_discounted_return` is one of them where a discount other than 1 was given, and
        `episode_return.NAME` is the return of an agent.
        """
        numbers = {
            "episode_length": float(self.length),
            "episode_return": float(self.episode_return),
        }
        if self.discount != 1:  # or else it would be the return once more
            numbers["episode_discounted_return"] = float(self.discounted_return)
        for name, number in self.returns.items():
            numbers[f"episode_return.{name}"] = float(number)
        return numbers


class Episodes:
    """Sum up an episode in each environment, for all of them at once.

    A TrajInfo with a `step` of its own has that called for each step. Otherwise the sums are kept
    here, with the same bits, and no Python code runs for each environment.

    >>> episodes = Episodes(TrajInfo, n_envs=2)
    >>> episodes.add([1.0, 2.0])
    >>> episodes.end([1])
    >>> episodes.take_completed()[0].episode_return
    2.0

    Args:
        make_traj_info: returns the summary of a new episode.
        n_envs: number of environments.
        are_batched: whether rewards come as arrays, and not as lists.
        agents: names of the agents, where each has a reward of its own: then summaries are told.

    Attributes:
        summaries: those of the episodes under way; where they are not told, without their sums.
        are_told: whether the `step` of each summary is to be called, and not `add`.
    """

    def __init__(
        self,
        make_traj_info: Callable[[], TrajInfo],
        n_envs: int,
        *,
        are_batched: bool = False,
        agents: Sequence[str] = (),
    ) -> None:
        self._make_traj_info = make_traj_info
        self._agents = agents
        self._n_envs = n_envs
        is_of_lists = n_envs <= _FEW and not are_batched
        self._math: Any = _OfLists if is_of_lists else _OfArrays  # Any: numbers of either
        self._completed: list[TrajInfo] = []
        self.begin()

    def begin(self) -> None:
        """Begin an episode in each environment, and forget those under way."""
        self.summaries = [self.new_summary() for _ in range(self._n_envs)]
        has_own = any(type(traj).step is not TrajInfo.step for traj in self.summaries)
        self.are_told = has_own or bool(self._agents)
        if self.are_told:
            return  # they keep their sums themselves, of whatever kind these are
        self._n_steps = 0
        self._begun = [0] * self._n_envs  # self._n_steps when the episode began
        numbers = self._math.numbers
        self._return, self._discounted = (numbers([0.0] * self._n_envs) for _ in range(2))
        self._weight = numbers([1.0] * self._n_envs)
        self._discount = numbers([traj.discount for traj in self.summaries])
        self._is_discounted = any(traj.discount != 1 for traj in self.summaries)

    def new_summary(self) -> TrajInfo:
        """Return the summary of a new episode."""
        traj = self._make_traj_info()
        if self._agents:
            traj.returns = dict.fromkeys(self._agents, 0.0)
        return traj

    def add(
        self, reward: Sequence[SupportsFloat] | NDArray[Any], skipped: Sequence[int] = ()
    ) -> None:
        """Add the rewards of a step.

        Args:
            reward: n rewards.
            skipped: numbers of environments that took no step; their episodes begin after it.
        """
        is_short = reward.__class__ is tuple and self._math is _OfLists
        if is_short and not (self._is_discounted or skipped):  # most: no call in Python
            self._return = [*map(operator.add, self._return, map(float, reward))]
            self._n_steps += 1
            return
        add, times = self._math.add, self._math.times
        reward = self._math.numbers(reward)
        self._n_steps += 1
        self._return = add(self._return, reward)
        if self._is_discounted:
            self._discounted = add(self._discounted, times(self._weight, reward))
            self._weight = times(self._weight, self._discount)
        for number in skipped:
            self._begun[number] = self._n_steps
            self._return[number] = self._discounted[number] = 0.0
            self._weight[number] = 1.0

    def tell(self, steps: Iterable[tuple[Any, ...]], skipped: Sequence[int] = ()) -> None:
        """Call the `step` of each environment's summary.

        Args:
            steps: for each environment, its observation, action, reward, terminated, truncated and
                info.
            skipped: numbers of environments that took no step.
        """
        for number, (traj, step) in enumerate(zip(self.summaries, steps, strict=True)):
            if number not in skipped:
                traj.step(*step)

    def end(self, numbers: Sequence[int]) -> None:
        """Complete the episodes of some environments, in this order, and begin the next ones."""
        for number in numbers:
            self._completed.append(self.summary(number))
            self.resume(number, self.new_summary())

    def summary(self, number: int) -> TrajInfo:
        """Return the summary of the episode under way in an environment, with its sums so far."""
        traj = self.summaries[number]
        if not self.are_told:
            traj.length = self._n_steps - self._begun[number]
            traj.episode_return = traj.discounted_return = float(self._return[number])
            if self._is_discounted:
                traj.discounted_return = float(self._discounted[number])
                traj._weight = float(self._weight[number])
        return traj

    def forget(self, numbers: Sequence[int]) -> None:
        """Begin an episode in some environments, and forget those under way there."""
        for number in numbers:
            self.resume(number, self.new_summary())

    def resume(self, number: int, traj: TrajInfo) -> None:
        """Go on with an episode in an environment from its summary, and forget the one there."""
        if type(traj).step is not TrajInfo.step and not self.are_told:
            self.summaries = [self.summary(each) for each in range(self._n_envs)]
            self.are_told = True
        self.summaries[number] = traj
        if self.are_told:
            return
        self._begun[number] = self._n_steps - traj.length
        self._return[number] = traj.episode_return
        if traj.discount != 1 and not self._is_discounted:
            self._discounted[:] = self._return
            self._is_discounted = True
        if self._is_discounted:
            self._discounted[number] = traj.discounted_return
            self._weight[number], self._discount[number] = traj._weight, traj.discount

    def take_completed(self) -> list[TrajInfo]:
        """Return the episodes that ended since the last call, in the order of their ends."""
        completed, self._completed = self._completed, []
        return completed

    def put_back(self, completed: list[TrajInfo]) -> None:
        """Have `take_completed` return these episodes, and none that ended since it was called."""
        self._completed = completed


class _OfLists:
    """The sums of a few environments."""

    @staticmethod
    def numbers(values: Any) -> list[float]:
        return values.tolist() if isinstance(values, np.ndarray) else [*map(float, values)]

    @staticmethod
    def add(one: list[float], other: list[float]) -> list[float]:
        return [*map(operator.add, one, other)]

    @staticmethod
    def times(one: list[float], other: list[float]) -> list[float]:
        return [*map(operator.mul, one, other)]


class _OfArrays:
    """The same of many, or of rewards that are arrays."""

    @staticmethod
    def numbers(values: Any) -> NDArray[np.float64]:
        if not isinstance(values, np.ndarray):
            values = [*map(float, values)]  # which refuses what is no number
        return np.array(values, np.float64)

    @staticmethod
    def add(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
        if np.count_nonzero(other):  # most steps of many environments give no reward
            one += other
        return one

    @staticmethod
    def times(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
        return one * other
