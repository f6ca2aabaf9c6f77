"""Episodes sums up as calls of each summary do, whatever the number of environments."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from parllel.cages import TrajInfo
from parllel.cages.episodes import Episodes

MANY = 200  # kept in arrays, not in lists


def of_steps(rewards: list[float], discount: float) -> TrajInfo:
    traj = TrajInfo(discount=discount)
    for reward in rewards:
        traj.step(None, None, reward, False, False, {})
    return traj


@pytest.mark.parametrize("n_envs", [1, 3, MANY])
@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, None])
def test_sums_have_the_bits_of_calls(n_envs: int, discount: float, dtype: Any) -> None:
    generator = np.random.default_rng(0)
    are_batched = dtype is not None
    episodes = Episodes(lambda: TrajInfo(discount=discount), n_envs, are_batched=are_batched)
    under_way: list[list[float]] = [[] for _ in range(n_envs)]
    expected = []
    for _ in range(30):
        reward = generator.normal(size=n_envs).astype(dtype or float)
        skipped = np.flatnonzero(generator.random(n_envs) < 0.1).tolist()
        episodes.add(tuple(reward.tolist()) if dtype is None else reward, skipped)
        for number, rewards in enumerate(under_way):
            under_way[number] = [] if number in skipped else [*rewards, float(reward[number])]
        ended = np.flatnonzero(generator.random(n_envs) < 0.2).tolist()
        ended = [number for number in ended if number not in skipped]
        episodes.end(ended)
        for number in ended:
            expected.append(of_steps(under_way[number], discount))
            under_way[number] = []
    assert not episodes.are_told
    assert len(expected) > 3
    assert episodes.take_completed() == expected
    assert episodes.take_completed() == []


@pytest.mark.parametrize("n_envs", [2, MANY])
def test_an_episode_goes_on_from_its_summary(n_envs: int) -> None:
    episodes, discount = Episodes(TrajInfo, n_envs), 0.5
    rewards = np.arange(float(n_envs))
    for _ in range(3):
        episodes.add(rewards)
    episodes.resume(1, of_steps([4.0, 2.0], discount))  # the only one with a discount
    episodes.add(rewards)
    assert episodes.summary(1) == of_steps([4.0, 2.0, 1.0], discount)
    assert episodes.summary(1)._weight == discount**3
    assert episodes.summary(0) == of_steps([0.0] * 4, 1.0)
    assert episodes.summary(n_envs - 1).discounted_return == 4 * rewards[-1] or n_envs == 2


@dataclass
class Largest(TrajInfo):
    largest: float = field(default=0.0, init=False)

    def step(self, *step: Any) -> None:
        super().step(*step)
        self.largest = max(self.largest, step[2])


@pytest.mark.parametrize("n_envs", [2, MANY])
def test_a_later_summary_may_have_a_step_of_its_own(n_envs: int) -> None:
    kinds = iter([*[TrajInfo] * n_envs, Largest])
    episodes = Episodes(lambda: next(kinds)(), n_envs)
    episodes.add(np.full(n_envs, 2.0))
    assert not episodes.are_told
    episodes.end([0])
    assert episodes.are_told
    episodes.tell([(None, None, 3.0, False, False, {})] * n_envs)
    assert episodes.summary(1) == of_steps([2.0, 3.0], 1.0)
    assert episodes.summary(0).largest == 3.0  # type: ignore[attr-defined]
    assert episodes.take_completed() == [of_steps([2.0], 1.0)]


@pytest.mark.parametrize("n_envs", [2, MANY])
def test_rewards_that_are_no_numbers_are_refused(n_envs: int) -> None:
    episodes = Episodes(TrajInfo, n_envs)
    with pytest.raises(TypeError):
        episodes.add([None] * n_envs)  # type: ignore[list-item]


@dataclass
class OfTwoReturns(TrajInfo):
    """Its return is an array, which is no number to sum up."""

    episode_return: Any = field(default_factory=lambda: np.zeros(2), init=False)

    def step(self, observation: Any, action: Any, reward: Any, *others: Any) -> None:
        self.episode_return = self.episode_return + reward


class OfItsOwn:
    """A summary that only has what is called."""

    def __init__(self) -> None:
        self.rewards: list[float] = []

    def step(self, observation: Any, action: Any, reward: Any, *others: Any) -> None:
        self.rewards.append(reward)


@pytest.mark.parametrize("n_envs", [2, MANY])
def test_summaries_with_a_step_of_their_own_may_hold_anything(n_envs: int) -> None:
    episodes = Episodes(OfTwoReturns, n_envs)
    episodes.tell([(None, None, np.array([1.0, 2.0]), False, False, {})] * n_envs)
    episodes.end([1])
    assert episodes.take_completed()[0].episode_return.tolist() == [1.0, 2.0]
    assert episodes.summary(1).episode_return.tolist() == [0.0, 0.0]

    others = Episodes(OfItsOwn, n_envs)  # type: ignore[arg-type]
    others.tell([(None, None, 3.0, False, False, {})] * n_envs)
    others.end([0])
    assert others.take_completed()[0].rewards == [3.0]  # type: ignore[attr-defined]
