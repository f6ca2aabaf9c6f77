"""EvalSampler: plays whole episodes to measure an agent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import ArraySpec
from parllel.cages import Cage, Capacities, Seed, TrajInfo, empty_rows, row_specs
from parllel.samplers.agent import Actor, RecurrentActor, has_receive_reward
from parllel.samplers.sampler import Sampler
from parllel.storages import default_storage
from parllel.tree import ArrayDict, allocate_tree, dict_map


class EvalSampler(Sampler):
    """Play the same number of episodes in each environment, and return their summaries.

    Taking the first episodes to end would favour short ones. So each environment plays its share
    of episodes to the end, and episodes beyond its share are dropped. A `RecurrentAgent` gets a
    new state for these environments, and its former state back afterwards. An agent that draws its
    actions goes on with its generator here; `runners.Evaluator` and `runners.record_video` put that
    and the global ones back, so that training does not depend on evaluations.

    Args:
        cages, agent: as for `Sampler`; the cages are not those of training.
        samples: a tree of T >= 1 steps that is written over and over, and not the tree of training;
            `patterns.build_eval_tree` makes one that stores frames as that tree does. By default
            the sampler makes a tree of its own, without infos, and frees it in `close`.
        n_episodes: number of episodes to play, a multiple of the number of environments.
        max_steps: steps of each environment after which unfinished episodes are given up.
        deterministic: whether the agent takes its most probable actions.
        check: as for `Sampler`.
        seed: given, each call of `collect_episodes` seeds the environments by it: their episodes
            differ by the agent's actions alone. Otherwise each call has new episodes.
        storage: kind of the memory of the sampler's own tree; `parllel.default_storage()` by
            default. An agent's model has to be on the same device.
        capacity: how many items an observation may have, where the sampler makes its own tree.
            Graphs and sequences need it; its forms are those of `patterns.build_example`.

    Attributes:
        n_episodes, max_steps: the arguments.

    Raises:
        TypeError: as for `Sampler`.
        ValueError: as for `Sampler`; or n_episodes is no positive multiple of the number of
            environments, or max_steps is not positive, or there are samples beside a storage or a
            capacity, or a capacity is missing.

    Example:
        >>> import numpy as np
        >>> from parllel.patterns import build_cages
        >>> from parllel.testing.toy_envs import Clock  # pays 1, 2 and 3 in an episode
        >>> class Zeros:
        ...     def step(self, observation, *, deterministic=False):
        ...         return np.zeros(len(observation), np.int64), {}
        ...     def value(self, observation):
        ...         return np.zeros(len(observation), np.float32)
        >>> cages = build_cages(Clock, n_envs=2, n_workers="serial")
        >>> episodes = EvalSampler(cages, Zeros(), n_episodes=4).collect_episodes()
        >>> [episode.episode_return for episode in episodes]
        [6.0, 6.0, 6.0, 6.0]
    """

    _builder = "patterns.build_eval_tree"

    def __init__(
        self,
        cages: Sequence[Cage],
        agent: Actor,
        samples: ArrayDict | None = None,
        *,
        n_episodes: int,
        max_steps: int = 100_000,
        deterministic: bool = True,
        check: bool = False,
        seed: Seed = None,
        storage: str | None = None,
        capacity: Capacities = None,
    ) -> None:
        for name, given in (("storage", storage), ("capacity", capacity)):
            if samples is not None and given is not None:
                raise ValueError(f"{name}: got {given!r} beside samples, whose memory is used")
        self._own_tree = _make_tree(cages, storage, capacity) if samples is None else ArrayDict()
        try:
            super().__init__(
                cages, agent, self._own_tree if samples is None else samples, check=check
            )
            self._check_numbers(n_episodes, max_steps)
        except BaseException:
            self._own_tree.close()
            raise
        self._is_recurrent = isinstance(agent, RecurrentActor)
        self._tells_reward = self._is_recurrent and has_receive_reward(agent)
        self.n_episodes, self.max_steps = n_episodes, max_steps
        self._share = n_episodes // self.batch_B
        self._deterministic = deterministic
        self._seed = seed

    def _check_numbers(self, n_episodes: int, max_steps: int) -> None:
        if n_episodes < 1 or n_episodes % self.batch_B:
            raise ValueError(
                f"n_episodes: got {n_episodes}, expected a positive multiple of {self.batch_B},"
                " the number of environments"
            )
        if max_steps < 1:
            raise ValueError(f"max_steps: got {max_steps}, expected 1 or more")

    def collect_episodes(self) -> list[TrajInfo]:
        """Reset all environments, play the episodes, and return those that were finished."""
        if self._seed is not None:
            self.reseed(self._seed)
        self.reset()
        with self._own_state():
            episodes = self._play()
        if not self._own_tree:  # which stores no infos
            self._tell_left_out()
        return episodes

    def close(self) -> None:
        """Give back the sampler's own tree, and what else it allocated. Cages stay open."""
        super().close()
        self._own_tree.close()

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
            for step in range(self.max_steps):
                t = step % self.batch_T
                if t == 0:
                    self._rotate()
                for group in self._groups:
                    group.act(self.agent, t, deterministic=self._deterministic)
                for group in self._groups:
                    group.finish(t)
                    if self._tells_reward:
                        agent.receive_reward(self.samples["reward"][t])
                    # Episodes come in the order of the columns in which they ended.
                    ended = group.ended()
                    for column, traj in zip(ended, group.take_completed(), strict=True):
                        if left[column]:
                            left[column] -= 1
                            finished.append(traj)
                    if self._is_recurrent and (columns := ended + group.invalid()):
                        agent.reset_state(columns)
                if not any(left):
                    break
        return finished


def _make_tree(cages: Sequence[Cage], storage: str | None, capacity: Capacities) -> ArrayDict:
    """Allocate one step of the environments of some cages, without infos."""
    batch_shape = (1, sum(cage.n_envs for cage in cages))
    agents = cages[0].agents
    number, flag = np.zeros(batch_shape, np.float32), np.zeros(batch_shape, np.bool_)
    if agents is not None:
        number, flag = agents.rows(batch_shape, np.float32), agents.flag_rows(batch_shape)
    observation = row_specs(cages[0].observation_space, batch_shape, capacity=capacity)
    specs = {
        "observation": dict_map(_padded, observation),
        "action": dict_map(_spec_of, empty_rows(cages[0].action_space, batch_shape)),
        "reward": dict_map(_spec_of, number),
        "terminated": dict_map(_spec_of, flag),
        "truncated": dict_map(_spec_of, flag),
        "env_info": ArrayDict(),
    }
    return allocate_tree(ArrayDict(specs), storage or default_storage())


def _spec_of(rows: NDArray[Any]) -> ArraySpec:
    return ArraySpec.of(rows.shape[:2], rows.dtype, rows.shape[2:])


def _padded(spec: ArraySpec) -> ArraySpec:
    return spec.changed(padding=1)
