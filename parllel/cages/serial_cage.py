"""SerialCage: environments in this process, stepped one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parllel.cages.cage import Cage, Command, execute
from parllel.cages.episodes import TrajInfo
from parllel.cages.seeds import Seed
from parllel.cages.stepper import Stepper
from parllel.cages.values.any_env import AnyEnv
from parllel.tree import TreePath


class SerialCage(Cage):
    """Step environments in this process: a started command is done when the call returns.

    >>> import gymnasium as gym
    >>> import numpy as np
    >>> reward = np.zeros(2)
    >>> with SerialCage(gym.make, {"id": "CartPole-v1"}, n_envs=2, seed=0) as cage:
    ...     cage.reset_async()
    ...     observation, info = cage.await_step()
    ...     cage.step_async(np.array([0, 1]), out_reward=reward)
    ...     _ = cage.await_step()
    >>> reward
    array([1., 1.])

    Args:
        make_env: returns one gymnasium environment, or a PettingZoo parallel environment, which is
            wrapped in `ParallelAgents`.
        env_kwargs: keyword arguments of `make_env`.
        make_traj_info: returns the summary of a new episode, e.g. the class `TrajInfo`.
        n_envs: number of environments; their rows are written at once.
        seed: one for all environments, or a SeedSequence for each. A SeedSequence gives the same
            random numbers each time: cages of one run need children of it, one each.
    """

    def __init__(
        self,
        make_env: Callable[..., AnyEnv],
        env_kwargs: Mapping[str, Any] | None = None,
        make_traj_info: Callable[[], TrajInfo] = TrajInfo,
        *,
        n_envs: int = 1,
        seed: Seed = None,
    ) -> None:
        self._stepper = Stepper(
            make_env, env_kwargs or {}, make_traj_info, n_envs=n_envs, seed=seed
        )
        self._result: tuple[Any, ...] | None = None
        self.n_envs = n_envs
        self.observation_space = self._stepper.observation_space
        self.action_space = self._stepper.action_space
        self.agents = self._stepper.agents

    def reseed(self, seed: Seed) -> None:
        """Have the next reset seed the environments, as the first one of a new cage does."""
        self._stepper.reseed(seed)

    def start_command(self, command: Command) -> None:
        """Carry out a command; `await_step` returns its results."""
        begin_s, self._result = time.perf_counter(), None
        self._result = execute(self._stepper, command)
        self.busy_span = begin_s, time.perf_counter()

    def await_step(self) -> Any:  # Any: a tuple whose length the command decides
        """Return the results of the command that was started; None if there was none."""
        result, self._result = self._result, None
        return result

    @property
    def final_obs(self) -> Mapping[int, Any]:
        """True final observations of the last step, by the number of the environment."""
        return self._stepper.final_obs

    def take_completed(self) -> list[TrajInfo]:
        """Return the episodes that ended since the last call, in the order of their ends."""
        return self._stepper.take_completed()

    def take_left_out(self) -> list[TreePath]:
        """Return the paths of numbers in infos that are new since the last call and not stored."""
        return self._stepper.left_out.take()

    def check_state(self) -> None:
        """Refuse environments whose states can't be saved."""
        self._stepper.check_state()

    def get_state(self) -> list[dict[str, Any]]:
        """Return the state of each environment as plain data."""
        return self._stepper.get_state()

    def set_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Have the environments go on from states that `get_state` returned."""
        self._result = None
        self._stepper.set_state(states)

    def close(self) -> None:
        """Close the environments. Called again, it does nothing."""
        self._stepper.close()
