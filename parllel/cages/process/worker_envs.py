"""WorkerEnvs: the environments of a worker, which carry out its cage's commands."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from parllel.cages.cage import Command, execute
from parllel.cages.process.command_forms import result_outputs
from parllel.cages.process.definitions import unpack
from parllel.cages.process.replies import Reply, ReplyMemory, describe_failure, misfit_of
from parllel.cages.process.task import Task
from parllel.cages.process.watched_env import Watch, WatchedEnv
from parllel.cages.seeds import Seed
from parllel.cages.stepper import Columns, Stepper
from parllel.cages.values.agent_forms import no_step
from parllel.generator_states import python_and_numpy_state, set_python_and_numpy_state
from parllel.tree.fitting import MisfitError


class WorkerEnvs:
    """Environments that were made for a task; they carry out commands, and tell of their errors.

    >>> import array
    >>> import gymnasium as gym
    >>> from parllel.cages import TrajInfo
    >>> from parllel.cages.cage import Outputs
    >>> from parllel.cages.process.task import packed_task
    >>> env_kwargs = {"id": "CartPole-v1"}
    >>> calls = {"make_env": gym.make, "env_kwargs": env_kwargs, "make_traj_info": TrajInfo}
    >>> with packed_task(calls, [np.random.SeedSequence(0)]) as task:
    ...     envs = WorkerEnvs(task, Watch(memoryview(array.array("q", [-1] * 3))))
    >>> reply = envs.execute(Command("reset", None, Outputs(), Outputs()))
    >>> reply.results[0].shape
    (4,)
    >>> envs.stepper.close()

    Args:
        task: the environments to make, in the surroundings of this process.
        watch: keeps the calls and the failures of the environments.

    Raises:
        Exception: make_env raised it; or as for a `Stepper`.
    """

    def __init__(self, task: Task, watch: Watch) -> None:
        watch.restarts = task.restarts
        _seed_globally(task.seeds[0])
        task.register()
        make_env, env_kwargs, make_traj_info = unpack(task.calls)
        task.register()  # again, after the modules that were imported for the calls
        numbered = zip(itertools.count(), task.seeds, strict=False)
        self._watch = watch
        self.stepper = _WorkerStepper(
            lambda: WatchedEnv(*next(numbered), partial(make_env, **env_kwargs), watch),
            {},
            make_traj_info,
            n_envs=len(task.seeds),
            seed=task.seeds,
        )

    @property
    def found(self) -> tuple[Any, Any, Any]:
        """The spaces of observations and actions, and the form of the agents."""
        return self.stepper.observation_space, self.stepper.action_space, self.stepper.agents

    def reply_to(self, work: Callable[[], Reply | None], memory: ReplyMemory) -> bytes | None:
        """Do some work; return its reply or its error, packed, or None where there is nothing.

        Args:
            work: calls `execute` or `handle_states`.
            memory: carries the arrays of the reply.
        """
        self._watch.clear()
        try:
            reply = work()
            return None if reply is None else self._pack(reply, memory)
        except BaseException as error:
            failed = self._watch.failed
            if failed is None and isinstance(error, MisfitError):
                failed = error.environment
            failure = describe_failure(error, failed)
            completed, restarted = self.stepper.take_completed(), self._watch.restarted
            return memory.pack(Reply((), {}, completed, (), restarted, failure))

    def _pack(self, reply: Reply, memory: ReplyMemory) -> bytes:
        try:
            return memory.pack(reply)
        except Exception as error:  # any that the class of a value raises
            misfit = misfit_of(reply)
            if misfit is None:
                raise
            raise misfit from error

    def handle_states(self, order: str, states: Any) -> Reply:
        """Check, get or set the states of all environments.

        Args:
            order: "check", "get" or "set".
            states: those to be set; else None.
        """
        found: list[dict[str, Any]] | None = None
        if order == "get":
            found = self.stepper.get_state()
        elif order == "set":
            self.stepper.set_state(states)
        else:
            self.stepper.check_state()
        return Reply([found])

    def execute(self, command: Command, *, is_recovery: bool = False) -> Reply | None:
        """Carry out a command; return what is not written to its rows, None where that is nothing.

        Args:
            command: its rows are in the memory of this process.
            is_recovery: whether the environments of another worker were lost in this command: a
                step resets instead, and its rows are no transitions.
        """
        stepper, watch = self.stepper, self._watch
        stepper.is_lost = is_recovery and command.kind != "reset"
        results = execute(stepper, command)
        outputs = result_outputs(command)
        returned = [value for value, out in zip(results, outputs, strict=True) if out is None]
        if command.kind == "reset":
            watch.invalid.clear()  # it was a random step after the reset
        elif is_recovery:
            watch.invalid += range(stepper.n_envs)
        if command.rows.valid is not None:
            for number in watch.invalid:
                command.rows.valid[number] = False
        is_empty = not (returned or stepper.final_obs or watch.invalid or watch.restarted)
        if is_empty and not stepper.left_out.new:
            return None
        left_out = stepper.left_out.take()
        final_obs, completed = {}, []
        ended = zip(stepper.final_obs.items(), stepper.take_completed(), strict=True)
        for (number, observation), traj in ended:
            if number not in watch.invalid:  # it is unknown how that episode would have ended
                final_obs[number] = observation
                completed.append(traj)
        invalid, restarted = watch.invalid, watch.restarted
        return Reply(returned, final_obs, completed, invalid, restarted, left_out=left_out)


class _WorkerStepper(Stepper):
    """A stepper that can replace one that was lost with its process.

    Attributes:
        is_lost: whether the next step resets all environments instead; it is truncated, and no
            transition.
    """

    is_lost = False

    def reseed(self, seed: Seed) -> None:
        """Have the next reset seed all environments, and seed the global generators."""
        super().reseed(seed)
        _seed_globally(self._seeds[0])
        for env, own in zip(self._envs, self._seeds, strict=True):
            assert isinstance(env, WatchedEnv)
            env.reseed(own)

    def get_state(self) -> list[dict[str, Any]]:
        """Return all states; the first one has those of the worker's global generators, too."""
        states = super().get_state()
        states[0]["worker"] = python_and_numpy_state()
        return states

    def set_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from states; those of the global generators where a worker has saved them."""
        super().set_state(states)
        for env, state, own in zip(self._envs, states, self._seeds, strict=True):
            assert isinstance(env, WatchedEnv)
            if "watch" not in state["env"]:  # the state is of a cage without a worker
                env.reseed(own)
        if "worker" in states[0]:
            set_python_and_numpy_state(states[0]["worker"])

    def _check_env(self, env: Any) -> None:
        env.check_state()

    def _env_state(self, env: Any) -> dict[str, Any]:
        state: dict[str, Any] = env.get_state()
        return state

    def _set_env_state(self, env: Any, state: Mapping[str, Any]) -> None:
        env.set_state(state)

    def step(self, actions: Sequence[Any]) -> Columns:
        """Step all environments; or reset them, where the ones before them were lost."""
        if not self.is_lost:
            return super().step(actions)
        observations, _ = self.reset()
        n_envs = self.n_envs
        reward, terminated, truncated = ([each] * n_envs for each in no_step(self.agents))
        columns = Columns(observations, reward, terminated, truncated, [{}] * n_envs)
        return columns if self._lives is None else columns._replace(valid=self._lives.acted())


def _seed_globally(seed: np.random.SeedSequence) -> None:
    """Seed the global generators, which would be the same in all workers of one fork server."""
    words = seed.generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)  # noqa: NPY002  # environments may use it
