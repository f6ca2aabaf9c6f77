"""EvalSampler: plays whole episodes to measure an agent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from parllel.cages import Cage, TrajInfo
from parllel.samplers.agent import Actor, RecurrentActor
from parllel.samplers.sampler import Sampler
from parllel.tree import ArrayDict


class EvalSampler(Sampler):
    """Play the same number of episodes in each environment, and return their summaries.

    Taking the first episodes to end would favour short ones. So each environment plays its share
    of episodes to the end, and episodes beyond its share are dropped. A `RecurrentAgent` gets a
    new state for these environments, and its former state back afterwards.

    Args:
        cages, agent: as for `Sampler`; the cages are not those of training.
        samples: a tree of T >= 1 steps that is written over and over (`patterns.build_eval_tree`),
            and not the tree of training.
        n_episodes: number of episodes to play, a multiple of the number of environments.
        max_steps: steps of each environment after which unfinished episodes are given up.
        deterministic: whether the agent takes its most probable actions.
        check: as for `Sampler`.

    Raises:
        TypeError: as for `Sampler`.
        ValueError: as for `Sampler`; or n_episodes is no positive multiple of the number of
            environments, or max_steps is not positive.

    Example:
        >>> import numpy as np
        >>> from parllel.patterns import build_cages, build_example, build_sample_tree
        >>> from parllel.testing.toy_envs import Clock  # pays 1, 2 and 3 in an episode
        >>> class Zeros:
        ...     def step(self, observation, *, deterministic=False):
        ...         return np.zeros(len(observation), np.int64), {}
        ...     def value(self, observation):
        ...         return np.zeros(len(observation), np.float32)
        >>> example = build_example(Clock, storage="local")
        >>> samples = build_sample_tree(example, Zeros(), batch_shape=(1, 2))
        >>> cages = build_cages(Clock, n_envs=2, n_workers="serial")
        >>> episodes = EvalSampler(cages, Zeros(), samples, n_episodes=4).collect_episodes()
        >>> [episode.episode_return for episode in episodes]
        [6.0, 6.0, 6.0, 6.0]
    """

    _builder = "patterns.build_eval_tree"

    def __init__(
        self,
        cages: Sequence[Cage],
        agent: Actor,
        samples: ArrayDict,
        *,
        n_episodes: int,
        max_steps: int = 100_000,
        deterministic: bool = True,
        check: bool = False,
    ) -> None:
        super().__init__(cages, agent, samples, check=check)
        if n_episodes < 1 or n_episodes % self.batch_B:
            raise ValueError(
                f"n_episodes: got {n_episodes}, expected a positive multiple of {self.batch_B},"
                " the number of environments"
            )
        if max_steps < 1:
            raise ValueError(f"max_steps: got {max_steps}, expected 1 or more")
        self._is_recurrent = isinstance(agent, RecurrentActor)
        self._share = n_episodes // self.batch_B
        self._max_steps = max_steps
        self._deterministic = deterministic

    def collect_episodes(self) -> list[TrajInfo]:
        """Reset all environments, play the episodes, and return those that were finished."""
        self.reset()
        with self._own_state():
            episodes = self._play()
        self._tell_left_out()
        return episodes

    @contextmanager
    def _own_state(self) -> Iterator[None]:
        """Give a recurrent agent a new state inside the `with` block, then its former one back."""
        agent: Any = self.agent
        if not self._is_recurrent:
            yield
            return
        former = getattr(agent, "rnn_state", None)
        agent.begin(self.batch_B)
        try:
            yield
        finally:
            agent.rnn_state = former

    def _play(self) -> list[TrajInfo]:
        agent: Any = self.agent
        left = [self._share] * self.batch_B
        finished: list[TrajInfo] = []
        with self._acting():
            for step in range(self._max_steps):
                t = step % self.batch_T
                if t == 0:
                    self._rotate()
                for group in self._groups:
                    group.act(self.agent, t, deterministic=self._deterministic)
                for group in self._groups:
                    group.finish(t)
                    # Episodes come in the order of the columns in which they ended.
                    completed = zip(group.final_obs(), group.take_completed(), strict=True)
                    for column, traj in completed:
                        if left[column]:
                            left[column] -= 1
                            finished.append(traj)
                    ended = [*group.final_obs(), *group.invalid()]
                    if self._is_recurrent and ended:
                        agent.reset_state(ended)
                if not any(left):
                    break
        return finished
