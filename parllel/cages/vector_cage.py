"""VectorCage: steps a vector environment, which is many environments in one object."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from parllel.cages.cage import Cage, Command
from parllel.cages.episodes import TrajInfo
from parllel.cages.seeds import Seed
from parllel.cages.values.env_rows import Info, Output, Rows, check_fits, write_batch
from parllel.cages.values.infos import info_of, write_info_batch
from parllel.cages.vector.vector_backend import backend_of
from parllel.cages.vector.vector_stepper import VectorStepper
from parllel.tree import ArrayDict, TreePath, dict_map
from parllel.tree.fitting import MisfitError, put_batch


class VectorCage(Cage):
    """Step a vector environment: gymnasium's, ALE's, envpool's, or any other `VectorEnv`.

    Whatever its autoreset mode, results are those that a SerialCage of the same environments and
    seeds gives:

    - SAME_STEP: the environment resets in the step that ends an episode, and gives the true final
      observation in its info.
    - DISABLED: the cage resets the ended environments in the same step.
    - NEXT_STEP: the cage does the same with environments that can be reset one by one though they
      reset by themselves (SyncVectorEnv, AsyncVectorEnv with shared memory, AtariVectorEnv from
      0.12.1 on, envpool; none in a wrapper). With all others, `out_obs` of the step that ends an
      episode gets the final observation itself, and the environment spends its next step on the
      reset: it ignores the action, and the row is no transition. The environment is then in
      `invalid`.

    SAME_STEP is best for AtariVectorEnv: it resets inside of the step, where in NEXT_STEP the other
    environments wait while the cage resets those that ended.

    Two things are lost in SAME_STEP before a cage sees them. AtariVectorEnv returns only the info
    of the reset, where other rows have that of the step. An AsyncVectorEnv whose environments reuse
    the memory of their observations has overwritten the final one.

    A step of AsyncVectorEnv, AtariVectorEnv or envpool goes on while the caller does something
    else (`busy_span` ends when it was waited for); others are taken when they are started. Each
    leaf of a batch is written by one assignment. A TrajInfo with a `step` of its own costs a call
    for each environment and step. A vector environment steps as a whole, so after a reset all
    environments take as many random steps as the one that takes most; those that should have taken
    fewer are reset once more.

    >>> import gymnasium as gym
    >>> import numpy as np
    >>> from gymnasium.vector import SyncVectorEnv
    >>> def make_vector_env():
    ...     return SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    >>> reward = np.zeros(2, np.float32)
    >>> with VectorCage(make_vector_env, seed=0) as cage:
    ...     cage.reset_async()
    ...     observation, info = cage.await_step()
    ...     cage.step_async(np.array([0, 1]), out_reward=reward)
    ...     _ = cage.await_step()
    >>> reward
    array([1., 1.], dtype=float32)

    Args:
        make_vector_env: returns the vector environment. It must step all its environments at once
            (AtariVectorEnv, envpool: `batch_size` is `num_envs`), and go on until it says that the
            episode ended (AtariVectorEnv: not with `life_loss_info`).
        env_kwargs: keyword arguments of `make_vector_env`.
        make_traj_info: returns the summary of a new episode, e.g. the class `TrajInfo`.
        seed: one for all environments, or a SeedSequence for each. A vector environment of an
            unknown class takes the first environment's seed for all. envpool takes its seed in
            `env_kwargs`; this one then seeds random actions only.

    Raises:
        TypeError: `make_vector_env` returned no vector environment, a space's values are no arrays
            of one shape, or the seed is of another type.
        ValueError: the autoreset mode is unknown, the environment steps a part of its environments
            at a time, or the number of seeds is not that of its environments.
    """

    def __init__(
        self,
        make_vector_env: Callable[..., VectorEnv[Any, Any, Any]],
        env_kwargs: Mapping[str, Any] | None = None,
        make_traj_info: Callable[[], TrajInfo] = TrajInfo,
        *,
        seed: Seed = None,
    ) -> None:
        backend = backend_of(make_vector_env(**(env_kwargs or {})))
        self._hold(VectorStepper(backend, make_traj_info, seed))

    def _hold(self, stepper: VectorStepper) -> None:
        self._stepper = stepper
        self._under_way: tuple[Command, Rows] | None = None
        self._result: tuple[Any, ...] | None = None
        self.n_envs, self.goes_on = self._stepper.n_envs, self._stepper.goes_on
        self.observation_space = self._stepper.observation_space
        self.action_space = self._stepper.action_space

    def reseed(self, seed: Seed) -> None:
        """Have the next reset seed the environments, as the first one of a new cage does.

        Raises:
            NotImplementedError: the environment takes no seed after it was made (envpool).
            TypeError, ValueError: as for the seed of the constructor.
        """
        if self._under_way is not None:
            self.await_step()
        self._stepper.reseed(seed)

    def start_command(self, command: Command) -> None:
        """Start a step, or carry out a reset."""
        if self._under_way is not None:
            self.await_step()  # one command at a time
        begin_s = time.perf_counter()
        self._result, action = None, command.action
        if action is None:
            try:
                action = self._reset_or_draw(command)
            except MisfitError as error:
                self._stepper.tell_of(error)
                raise
        if action is not None:
            self._stepper.start(action)  # which copies it
            self._under_way = command, action
        self.busy_span = begin_s, time.perf_counter()

    def _reset_or_draw(self, command: Command) -> Rows | None:
        """Carry out a reset; or return the actions of a random step."""
        outputs, rows = command.outputs, command.rows
        if command.kind != "reset":
            drawn: Rows = self._stepper.random_actions()
            return drawn
        observation, info = self._stepper.reset(command.max_random_steps)
        self._result = (
            self._deliver("observation", observation, outputs.observation, rows.observation),
            self._deliver_info(info, {}, outputs.info, rows.info),
        )
        return None

    def await_step(self) -> Any:  # Any: a tuple whose length the command decides
        """Wait for the command that was started and return its results; None if there was none."""
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            result, self._result = self._result, None
        else:
            try:
                result = self._finish(*under_way)
            except MisfitError as error:
                self._stepper.tell_of(error)
                raise
        return result

    def _finish(self, command: Command, action: Rows) -> tuple[Any, ...]:
        """Wait for a step, and return its results; those of a random step begin with its action."""
        outputs, rows = command.outputs, command.rows
        observation, reward, terminated, truncated, info, single = self._stepper.wait()
        if self._stepper.goes_on and self.busy_span is not None:
            self.busy_span = self.busy_span[0], time.perf_counter()
        if outputs.observation is not None:
            for number, value in self._stepper.final_obs.items():
                check_fits(rows.observation, value, number)
        drawn: tuple[Any, ...] = ()
        if command.action is None:
            drawn = (self._deliver("action", action, outputs.action, rows.action),)
        return (
            *drawn,
            self._deliver("observation", observation, outputs.observation, rows.observation),
            self._deliver("reward", reward, outputs.reward, rows.reward),
            self._deliver("terminated", terminated, outputs.terminated, rows.terminated),
            self._deliver("truncated", truncated, outputs.truncated, rows.truncated),
            self._deliver_info(info, single, outputs.info, rows.info),
        )

    @property
    def final_obs(self) -> Mapping[int, Any]:
        """True final observations of the last step, by the number of the environment."""
        return self._stepper.final_obs

    @property
    def invalid(self) -> Collection[int]:
        """Numbers of the environments that spent the last step on a reset."""
        return self._stepper.invalid

    @property
    def gives_invalid_rows(self) -> bool:
        """Whether environments spend steps on resets: NEXT_STEP, and no reset one by one."""
        return self._stepper.spends_steps

    def take_completed(self) -> list[TrajInfo]:
        """Return the episodes that ended since the last call, in the order of their ends."""
        return self._stepper.take_completed()

    def take_left_out(self) -> list[TreePath]:
        """Return the paths of numbers in infos that are new since the last call and not stored."""
        return self._stepper.left_out.take()

    def close(self) -> None:
        """Wait for a step under way, and close the environment. Called again, it does nothing."""
        self._under_way = None
        self._stepper.close()

    def _deliver(self, name: str, batch: Rows, out: Output | None, rows: Rows) -> Any:
        """Write a batch to an output; or return a copy where there is none."""
        if out is None:
            own = dict_map(np.array, batch)
            return own if self.n_envs > 1 else own[0]
        try:
            if isinstance(rows, np.ndarray):
                put_batch(rows, batch)
            else:
                write_batch(rows, batch)
        except MisfitError as error:
            error.path = (name, *error.path)
            raise
        return out

    def _deliver_info(
        self,
        info: Info,
        single: Mapping[int, Info],
        out: Output | None,
        rows: ArrayDict,
    ) -> Any:
        """Write an info to an output; or return copies where there is none."""
        if out is None:
            own = [info_of(number, info, single) for number in range(self.n_envs)]
            return own if self.n_envs > 1 else own[0]
        if len(rows) or single or not self._stepper.left_out.has_seen(info):
            try:
                write_info_batch(rows, info, single, self._stepper.left_out)
            except MisfitError as error:
                error.path = ("env_info", *error.path)
                raise
        return out
