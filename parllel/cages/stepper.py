"""Stepper: resets and steps single environments; a cage runs it here or in a worker process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from parllel.cages.agent_lives import AgentLives, Draws
from parllel.cages.episodes import Episodes, TrajInfo
from parllel.cages.made_envs import close_envs, make_envs, tell_of
from parllel.cages.seeds import Seed, seed_data, seed_of, seed_spaces, spawn_seeds
from parllel.cages.states.attributes import attributes_of, pack, set_attributes, unpack
from parllel.cages.states.env_states import check_env_state, env_state, set_env_state
from parllel.cages.values.any_env import AnyEnv
from parllel.cages.values.env_checks import as_reset, as_step, check_make_env
from parllel.cages.values.env_rows import copy_tree
from parllel.cages.values.infos import LeftOut, copy_info
from parllel.cages.values.jagged_spaces import has_jagged
from parllel.cages.values.jagged_values import as_arrays
from parllel.cages.values.spaces import (
    ACTION_MASK,
    check_members,
)
from parllel.tree.fitting import MisfitError


class Columns(NamedTuple):
    """The results of one step of single environments: a list of n values for each result.

    >>> Columns([0.5, 0.7], [1.0, 1.0], [False, True], [False, False], [{}, {}]).terminated[1]
    True
    """

    observation: Sequence[Any]
    reward: Sequence[Any]
    terminated: Sequence[Any]  # Any: a flag, or one for each agent
    truncated: Sequence[Any]
    info: Sequence[dict[str, Any]]
    valid: Sequence[Any] | None = None  # which agents have acted, where they may come and go


class Stepper:
    """Environments that are stepped together, with their episodes summed up.

    An environment is reset in the step that ended its episode: the observation of that step is the
    first one of the next episode, and the true final one is kept in `final_obs`. Reward,
    terminated, truncated and info are always those of the step itself.

    >>> import gymnasium as gym
    >>> stepper = Stepper(gym.make, {"id": "CartPole-v1"}, n_envs=2, seed=0)
    >>> observations, infos = stepper.reset()
    >>> stepper.step([0, 1]).reward
    (1.0, 1.0)
    >>> stepper.close()

    Args:
        make_env: returns one gymnasium environment.
        env_kwargs: keyword arguments of `make_env`.
        make_traj_info: returns the summary of a new episode.
        n_envs: number of environments.
        seed: one for all, or a SeedSequence for each environment. An environment's results depend
            on its own SeedSequence only. None draws one from the operating system.

    Raises:
        TypeError: `make_env` is no function or makes no environment, a space's values are no
            arrays of one shape, or a seed is no seed.
        ValueError: n_envs is not positive, or not the number of seeds; or `make_env` returned the
            same environment twice.
    """

    def __init__(
        self,
        make_env: Callable[..., AnyEnv],
        env_kwargs: Mapping[str, Any],
        make_traj_info: Callable[[], TrajInfo] = TrajInfo,
        *,
        n_envs: int = 1,
        seed: Seed = None,
    ) -> None:
        check_make_env(make_env)
        self._seeds = spawn_seeds(seed, n_envs)
        self._envs, self.agents = make_envs(make_env, env_kwargs, self._seeds)
        self.observation_space = self._envs[0].observation_space
        self.action_space = self._envs[0].action_space
        self._has_members = isinstance(self.observation_space, gym.spaces.Dict | gym.spaces.Tuple)
        self._is_jagged = has_jagged(self.observation_space)
        # Copies: environments may share one, and draw from each other's random numbers.
        self._action_spaces = [copy.deepcopy(env.action_space) for env in self._envs]
        agents = self.agents
        self._episodes = Episodes(make_traj_info, n_envs, agents=agents.names if agents else ())
        self._lives = AgentLives(self._envs, agents) if agents and agents.has_flags else None
        self._draws = Draws(None if self._lives is None else self._lives.form)
        self._is_reset = False
        self._is_checked = False  # whether steps are known to return what gymnasium's do
        self._is_closed = False
        # What the next actions follow: observations and infos, those of resets where there was one.
        self._observations: Sequence[Any] = [None] * n_envs
        self._infos: Sequence[Any] = [None] * n_envs
        self.n_envs = n_envs
        self.left_out = LeftOut()
        self.final_obs: dict[int, Any] = {}
        """The true final observation of each environment whose episode ended in the last step."""

    def reseed(self, seed: Seed) -> None:
        """Have the next reset seed all environments, as the first one of a new stepper does."""
        self._seeds = spawn_seeds(seed, self.n_envs)
        self._is_reset = False

    def reset(self, max_random_steps: int = 0) -> tuple[list[Any], list[dict[str, Any]]]:
        """Reset all environments, seeded the first time. Episodes under way are forgotten.

        Args:
            max_random_steps: the most random steps that an environment takes after its reset.
                How many it takes, and its actions, are drawn from its own seed.

        Returns:
            The observations to act on, and the infos of the resets.
        """
        self._check_open()
        self.final_obs = {}
        self._episodes.begin()
        seeds: Sequence[int | None] = [None] * len(self._envs)
        if not self._is_reset:
            seeds = seed_spaces(self._seeds, self._action_spaces)
        observations, infos = [], []
        for number, env_seed in enumerate(seeds):
            observation, info = self._reset_one(number, env_seed)
            observations.append(observation)
            infos.append(info)
        acted_on = list(infos)
        if max_random_steps:
            for number, seed in enumerate(self._seeds):
                n_steps = int(np.random.default_rng(seed).integers(max_random_steps + 1))
                last = observations[number], infos[number]
                for _ in range(n_steps):
                    last = self._step_randomly(number, *last)
                observations[number], acted_on[number] = last
        self._observations, self._infos = observations, acted_on
        self._is_reset = True  # not before: the reset that follows one that failed is seeded, too
        return observations, infos

    def _step_randomly(self, number: int, observation: Any, info: Any) -> tuple[Any, Any]:
        """Take a random step in one environment; return the observation and info to act on."""
        try:
            action = self._draws.sample(self._action_spaces[number], observation, info)
            result = self._envs[number].step(action)
            result = as_step(result, self.agents)
            observation, reward, terminated, truncated, info = result
            traj = self._episodes.summary(number)
            traj.step(observation, action, reward, terminated, truncated, info)
            self._episodes.resume(number, traj)
            if self._is_jagged:
                observation = as_arrays(self.observation_space, observation, ("observation",))
        except Exception as error:
            self.tell_of(error, number)
            raise
        if self._has_ended(number, terminated, truncated):
            self._episodes.forget([number])
            observation, info = self._reset_one(number)
        return observation, info

    def _reset_one(self, number: int, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset one environment."""
        try:
            observation, info = as_reset(self._envs[number].reset(seed=seed))
            if self._has_members:
                check_members(self.observation_space, observation, ("observation",))
            if self._is_jagged:
                observation = as_arrays(self.observation_space, observation, ("observation",))
            if self._lives is not None:
                self._lives.look(number)
            return observation, info
        except Exception as error:
            self.tell_of(error, number)
            raise

    def _has_ended(self, number: int, terminated: Any, truncated: Any) -> bool:
        """Tell whether the last step of an environment ended its episode."""
        if self._lives is None:
            return bool(terminated) or bool(truncated)
        return not self._lives.look(number)

    def tell_of(self, error: BaseException, number: int) -> None:
        """Add to an error which environment it comes from, and with which seed it was reset."""
        tell_of(error, number, self._seeds[number])

    def step(self, actions: Sequence[Any]) -> Columns:
        """Step all environments, and reset those whose episode ends.

        Raises:
            RuntimeError: the environments were never reset, or are closed.
        """
        if self._is_closed or not self._is_reset:  # one look, in most steps
            self._check_open()
            raise RuntimeError("step before reset: call reset_async() and await_step() first")
        self.final_obs = {}
        results: list[Any] = []
        try:
            for env, action in zip(self._envs, actions, strict=True):
                results.append(env.step(action))  # those before an error are kept
        except Exception as error:
            self.tell_of(error, len(results))
            raise
        if self.agents is not None:
            return self._finish_step_of_agents(actions, results)
        if not self._is_checked:
            self._find_misfit(results)
            self._is_checked = True
        try:
            columns = Columns(*zip(*results, strict=True))
            has_ended = any(columns.terminated) or any(columns.truncated)
            if not self._episodes.are_told:
                self._episodes.add(columns.reward)
        except (TypeError, ValueError) as error:  # a reward or a flag is an array or no number
            self._find_misfit(results, error)
            raise
        if self._episodes.are_told:
            self._tell(actions, results)
        if self._is_jagged:
            columns = columns._replace(observation=self._arrays_of(columns.observation))
        self._infos = columns.info
        if has_ended:
            flags = enumerate(zip(columns.terminated, columns.truncated, strict=True))
            ended = [number for number, (one, other) in flags if one or other]
            columns = self._reset_ended(columns, ended)
        self._observations = columns.observation
        return columns

    def _finish_step_of_agents(self, actions: Sequence[Any], results: Sequence[Any]) -> Columns:
        """Take in the results of environments with several agents."""
        self._find_misfit(results)
        columns = Columns(*zip(*results, strict=True))
        if self._lives is not None:
            columns = columns._replace(valid=self._lives.acted())
        self._tell(actions, results)
        if self._is_jagged:
            columns = columns._replace(observation=self._arrays_of(columns.observation))
        self._infos = columns.info
        flags = enumerate(zip(columns.terminated, columns.truncated, strict=True))
        ended = [number for number, each in flags if self._has_ended(number, *each)]
        columns = self._reset_ended(columns, ended) if ended else columns
        self._observations = columns.observation
        return columns

    def _arrays_of(self, observations: Sequence[Any]) -> list[Any]:
        """Return observations whose members of different lengths are arrays."""
        space, arrays = self.observation_space, list[Any]()
        try:
            for observation in observations:
                arrays.append(as_arrays(space, observation, ("observation",)))
        except MisfitError as error:
            self.tell_of(error, len(arrays))
            raise
        return arrays

    def _tell(self, actions: Sequence[Any], results: Sequence[Any]) -> None:
        """Have each summary take in the step of its environment."""
        number = 0
        try:
            steps = enumerate(zip(self._episodes.summaries, actions, results, strict=True))
            for number, (traj, action, result) in steps:  # noqa: B007  # told of below
                observation, reward, terminated, truncated, info = result
                traj.step(observation, action, reward, terminated, truncated, info)
        except Exception as error:
            if not isinstance(error, MisfitError):
                self._find_misfit(results[number : number + 1], error, first=number)
                error.add_note(_returned(number, results[number]))
            self.tell_of(error, number)
            raise

    def _find_misfit(
        self, results: Sequence[Any], cause: Exception | None = None, first: int = 0
    ) -> None:
        """Raise an error that names the first environment whose step returned what none returns."""
        for number, result in enumerate(results, first):
            try:
                as_step(result, self.agents)
            except MisfitError as misfit:
                self.tell_of(misfit, number)
                if cause is not None:
                    cause.add_note(_returned(number, result))
                raise misfit from cause

    def random_actions(self) -> list[Any]:
        """Draw an action for each environment, of those that its last observation allows."""
        if not self._is_reset:
            self.reset()
        return list(map(self._draws.sample, self._action_spaces, self._observations, self._infos))

    def check_state(self) -> None:
        """Refuse environments whose states can't be saved, as `check_env_state` does."""
        for number, env in enumerate(self._envs):
            with self._told_of(number):
                self._check_env(env)

    def get_state(self) -> list[dict[str, Any]]:
        """Return the state of each environment, its episode's summary and generators, as data."""
        self._check_open()
        if not self._is_reset:
            raise RuntimeError("get_state before reset: call reset_async() and await_step() first")
        return [self._state_of(number) for number in range(self.n_envs)]

    def _state_of(self, number: int) -> dict[str, Any]:
        space = self._action_spaces[number]
        with self._told_of(number):
            return {
                "env": self._env_state(self._envs[number]),
                "episode": attributes_of(self._episodes.summary(number)),
                "action_space": pack(space, ("action_space",)),
                "seed": seed_data(self._seeds[number]),
                # By which the next random action is drawn.
                "action_mask": self._draws.mask(
                    space, self._observations[number], self._infos[number]
                ),
            }

    def set_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from states that `get_state` returned. Environments are reset before, once."""
        self._check_open()
        if len(states) != self.n_envs:
            raise ValueError(f"state: got {len(states)} environments, expected {self.n_envs}")
        if not self._is_reset:
            self.reset()
        self._is_reset, self.final_obs = False, {}
        self._episodes.take_completed()
        for number, state in enumerate(states):
            with self._told_of(number):
                self._set_env_state(self._envs[number], state["env"])
                traj = self._episodes.new_summary()
                set_attributes(traj, state["episode"])
                self._episodes.resume(number, traj)
                unpack(state["action_space"], self._action_spaces[number], ("action_space",))
        self._seeds = [seed_of(state["seed"]) for state in states]
        self._observations = [None] * self.n_envs  # those of a reset are no more
        self._infos = [{ACTION_MASK: state.get("action_mask")} for state in states]
        if self._lives is not None:
            self._lives.look_at_all()
        self._is_reset = True

    def _check_env(self, env: gym.Env[Any, Any]) -> None:
        check_env_state(env)

    def _env_state(self, env: gym.Env[Any, Any]) -> dict[str, Any]:
        return env_state(env)

    def _set_env_state(self, env: gym.Env[Any, Any], state: Mapping[str, Any]) -> None:
        set_env_state(env, state)

    @contextmanager
    def _told_of(self, number: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.tell_of(error, number)
            raise

    def take_completed(self) -> list[TrajInfo]:
        """Return the episodes that ended since the last call, in the order of their ends."""
        return self._episodes.take_completed()

    def close(self) -> None:
        """Close all environments, also where one can't be closed. Called again, it does nothing."""
        self._is_closed = True
        envs, self._envs = self._envs, []
        close_envs(envs, self._seeds)

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the cage is closed: its environments are gone; make a new one")

    def _reset_ended(self, columns: Columns, ended: Sequence[int]) -> Columns:
        """Keep final observations, and replace them by the first ones of the next episodes.

        Args:
            columns: the results of a step.
            ended: the numbers of the environments whose episode ended in it.

        Results that the reset may overwrite are copied before: an environment may reuse its arrays.
        """
        observations, rewards, infos = [*columns.observation], [*columns.reward], [*columns.info]
        acted_on = [*infos]
        for number in ended:
            self.final_obs[number] = copy_tree(observations[number])
            if rewards[number].__class__ is not float:
                rewards[number] = copy_tree(rewards[number])
            if infos[number]:
                infos[number] = copy_info(infos[number])
            self._episodes.end([number])
            observations[number], acted_on[number] = self._reset_one(number)
        self._infos = acted_on
        _, _, terminated, truncated, _, valid = columns  # as `_replace`, in a third of the time
        return Columns(observations, rewards, terminated, truncated, infos, valid)


def _returned(number: int, result: object) -> str:
    return f"environment {number} of this cage returned {result!r}"
