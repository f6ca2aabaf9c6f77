"""The program of a worker process: it makes environments and carries out its cage's commands."""

from __future__ import annotations

import faulthandler
import itertools
import logging
import pickle
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from parllel.cages.cage import Command, execute
from parllel.cages.env_checks import as_reset, check_env
from parllel.cages.env_rows import Value
from parllel.cages.process.channel import (
    BLOCK,
    DONE,
    EXECUTE,
    FORGET,
    FORM,
    INHERITED,
    READY,
    RECOVER,
    SEED,
    Channel,
    Message,
)
from parllel.cages.process.command_forms import (
    REPLY_BLOCK,
    CommandForm,
    rebuild_command,
    result_outputs,
)
from parllel.cages.process.definitions import take_descriptors, unpack
from parllel.cages.process.replies import Reply, ReplyMemory, describe_failure, dumps, misfit_of
from parllel.cages.process.status_page import (
    BEGIN,
    CALL,
    END,
    StatusPage,
    calls_of,
)
from parllel.cages.process.task import Task
from parllel.cages.stepper import Columns, Seed, Stepper, restart_seed, seed_words
from parllel.storages import Memory, Shared
from parllel.tree.fitting import MisfitError

TRACE_SIGNAL: Any = getattr(signal, "SIGUSR1", None)  # Windows has none, and no ProcessCage
"""Lets a worker write its traceback to its status page, whatever it is doing."""

# Commands are kept as NumPy views, 2 kB each. Those of a ring with more steps than this are made
# anew in each round.
_MOST_COMMANDS = 8192

# An environment that fails in more steps in a row than this is not made anew.
_MOST_FAILURES = 3

_logger = logging.getLogger(__name__)


def run_worker(end: socket.socket, page_descriptor: int) -> None:
    """Carry out messages until the cage closes its end of the socket, or its process ends.

    Args:
        end: the worker's end of the socket.
        page_descriptor: the file of the status page.
    """
    status_page = StatusPage(page_descriptor)
    trace = status_page.open_trace()
    faulthandler.enable(trace)
    faulthandler.register(TRACE_SIGNAL, trace)
    channel = Channel(end)
    watch = Watch(status_page.words)
    try:
        message = channel.read()
    except (EOFError, ConnectionError):  # the cage has ended
        return
    try:
        take_descriptors(channel.read_descriptors(message.number))
        worker = _Worker(channel, watch, pickle.loads(message.body))
    except BaseException as error:
        with suppress(ConnectionError):
            channel.send(READY, body=dumps((None, describe_failure(error, watch.failed))))
        return
    worker.run()


class Watch:
    """A record of the calls and the failures of a worker's environments.

    >>> import array
    >>> watch = Watch(memoryview(array.array("q", [0] * 3)))
    >>> watch.failed is None, watch.invalid
    (True, [])

    Args:
        words: the words of the status page. Environments write to `words[CALL]` when they are
            called (`calls_of`).

    Attributes:
        restarts: whether an environment that raises is made anew. Otherwise the command fails.
        failed: number of the environment by whose error the command failed; None where it did not.
        invalid: numbers of the environments that were made anew in a step: it is no transition.
        restarted: tracebacks of the environments that were made anew, by their numbers.
    """

    def __init__(self, words: memoryview) -> None:
        self.words = words
        self.restarts = False
        self.clear()

    def clear(self) -> None:
        """Forget the failures of the last command."""
        self.failed: int | None = None
        self.invalid: list[int] = []
        self.restarted: dict[int, str] = {}


class WatchedEnv(gym.Env[Any, Any]):
    """Pass calls on to an environment, and replace it where it fails.

    With `watch.restarts`, an environment that raises is closed and made anew, with another seed.
    The step that failed returns the observation before it, reward 0, and truncated; the reset that
    follows is the first one of the new environment.

    >>> import array
    >>> from parllel.cages.process.status_page import MOST_ENVIRONMENTS
    >>> watch = Watch(memoryview(array.array("q", [-1] * 3)))
    >>> make_env = partial(gym.make, "CartPole-v1")
    >>> env = WatchedEnv(2, np.random.SeedSequence(0), make_env, watch)
    >>> watch.words[CALL] % MOST_ENVIRONMENTS
    2

    Args:
        number: the number of the environment in its cage.
        seed: the environment's own seed.
        make_env: returns a new environment.
        watch: keeps its calls and its failures.
    """

    def __init__(
        self,
        number: int,
        seed: np.random.SeedSequence,
        make_env: Callable[[], gym.Env[Any, Any]],
        watch: Watch,
    ) -> None:
        self._number = number
        self._calls = calls_of(number)
        self._seed = seed
        self._make_env = make_env
        self._watch = watch
        self._words = watch.words
        self._n_failures = 0  # in a row
        self._first_seed: int | None = None  # of an environment that was made anew
        self._observation: Any = None  # the last one
        self._env = self._make()
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space

    def step(self, action: Value) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        self._words[CALL] = next(self._calls)
        try:
            result = self._env.step(action)
        except BaseException as error:  # a panic of a Rust extension is no Exception
            self._restart(error)
            self._watch.invalid.append(self._number)
            return self._observation, 0.0, False, True, {}
        self._n_failures = 0
        self._observation = result[0]
        return result

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        self._words[CALL] = next(self._calls)
        if self._first_seed is None:
            try:
                self._observation, info = as_reset(self._env.reset(seed=seed))
                return self._observation, info
            except BaseException as error:  # a panic of a Rust extension is no Exception
                self._restart(error)
        self._observation, info = self._reset_first()
        return self._observation, info

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Derive the seeds of environments that are made anew from this one."""
        self._seed, self._first_seed, self._n_failures = seed, None, 0

    def close(self) -> None:
        """Close the environment."""
        self._words[CALL] = next(self._calls)
        self._env.close()

    def _make(self) -> gym.Env[Any, Any]:
        self._words[CALL] = next(self._calls)
        try:
            env = self._make_env()
            check_env(env, ())
            return env
        except BaseException:
            self._watch.failed = self._number
            raise

    def _restart(self, error: BaseException) -> None:
        """Make the environment anew; or raise its error where that is not allowed."""
        self._n_failures += 1
        if not self._watch.restarts or self._n_failures > _MOST_FAILURES:
            self._watch.failed = self._number
            raise error
        self._watch.restarted[self._number] = "".join(traceback.format_exception(error))
        try:
            self._env.close()
        except BaseException:
            _logger.warning("environment %d can't be closed", self._number, exc_info=True)
        self._seed = restart_seed(self._seed)
        self._first_seed, _ = seed_words(self._seed)
        self._env = self._make()

    def _reset_first(self) -> tuple[Any, dict[str, Any]]:
        """Reset an environment for the first time after it was made anew."""
        seed, self._first_seed = self._first_seed, None
        try:
            return as_reset(self._env.reset(seed=seed))
        except BaseException:
            self._watch.failed = self._number
            raise


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

    def step(self, actions: Sequence[Any]) -> Columns:
        """Step all environments; or reset them, where the ones before them were lost."""
        if not self.is_lost:
            return super().step(actions)
        observations, _ = self.reset()
        n_envs = self.n_envs
        return Columns(
            observations, [0.0] * n_envs, [False] * n_envs, [True] * n_envs, [{}] * n_envs
        )


class _Worker:
    """Environments, with the blocks of memory and the command forms that the cage has sent."""

    def __init__(self, channel: Channel, watch: Watch, task: Task) -> None:
        task.surroundings.take_over()
        watch.restarts = task.restarts
        _seed_globally(task.seeds[0])
        make_env, env_kwargs, make_traj_info = unpack(task.calls)
        task.surroundings.register()  # again, after the modules that were imported for the calls
        numbered = zip(itertools.count(), task.seeds, strict=False)
        self._channel = channel
        self._watch = watch
        self._blocks: dict[int, Memory] = {}
        self._bytes: dict[int, NDArray[np.uint8]] = {}
        self._forms: dict[int, CommandForm] = {}
        self._commands: dict[tuple[int, bytes], Command] = {}
        self.stepper = _WorkerStepper(
            lambda: WatchedEnv(*next(numbered), partial(make_env, **env_kwargs), watch),
            {},
            make_traj_info,
            n_envs=len(task.seeds),
            seed=task.seeds,
        )

    def run(self) -> None:
        """Send the spaces, carry out messages until the end, and close the environments."""
        with suppress(EOFError, ConnectionError):  # the cage has closed the channel, or has ended
            self._serve()
        self.stepper.close()

    def _serve(self) -> None:
        channel, words = self._channel, self._watch.words
        body, sequence = None, None
        spaces = self.stepper.observation_space, self.stepper.action_space
        channel.send(READY, body=dumps((spaces, None)))
        while True:
            message = channel.read()
            if message.kind in (EXECUTE, RECOVER):
                if message.sequence != sequence:  # otherwise it was sent again, after Ctrl-C
                    words[BEGIN] = time.perf_counter_ns()
                    body, sequence = self._reply_to(message), message.sequence
                    words[END] = time.perf_counter_ns()
                channel.send(DONE, body=body or b"", sequence=sequence)
            else:
                self._learn(message)

    def _learn(self, message: Message) -> None:
        """Add or forget a block of memory or a command form."""
        if message.kind == FORM:
            self._forms[message.number] = pickle.loads(message.body)
        elif message.kind == BLOCK:
            (descriptor,) = self._channel.read_descriptors(1)
            nbytes = int.from_bytes(message.body, "little")
            self._add_block(message.number, Shared(nbytes, descriptor=descriptor))
        elif message.kind == INHERITED:
            self._add_block(message.number, pickle.loads(message.body))
        elif message.kind == SEED:
            self.stepper.reseed(pickle.loads(message.body))
        elif message.kind == FORGET:
            self._commands.clear()  # they hold views of all blocks, and are found anew
            for blocks in (self._blocks, self._bytes):
                blocks.pop(message.number, None)

    def _add_block(self, number: int, block: Memory) -> None:
        self._blocks[number] = block
        self._bytes[number] = block.array(0, (block.nbytes,), np.dtype(np.uint8))

    def _reply_to(self, message: Message) -> bytes | None:
        """Execute a command; return its reply, packed, or None where it is empty."""
        self._watch.clear()
        reply_memory = ReplyMemory(self._bytes[REPLY_BLOCK])
        try:
            command = self._find(message)._replace(max_random_steps=message.argument)
            reply = self._execute(command, is_recovery=message.kind == RECOVER)
            return None if reply is None else self._pack(reply, reply_memory)
        except BaseException as error:
            failed = self._watch.failed
            if failed is None and isinstance(error, MisfitError):
                failed = error.environment
            failure = describe_failure(error, failed)
            completed, restarted = self.stepper.take_completed(), self._watch.restarted
            return reply_memory.pack(Reply((), {}, completed, (), restarted, failure))

    def _pack(self, reply: Reply, memory: ReplyMemory) -> bytes:
        try:
            return memory.pack(reply)
        except Exception as error:  # any that the class of a value raises
            misfit = misfit_of(reply)
            if misfit is None:
                raise
            raise misfit from error

    def _find(self, message: Message) -> Command:
        key = message.number, message.body
        command = self._commands.get(key)
        if command is None:
            if len(self._commands) >= _MOST_COMMANDS:
                self._commands.clear()
            form = self._forms[message.number]
            command = self._commands[key] = rebuild_command(form, message.body, self._bytes)
        return command

    def _execute(self, command: Command, *, is_recovery: bool) -> Reply | None:
        stepper, watch = self.stepper, self._watch
        stepper.is_lost = is_recovery and command.kind != "reset"
        results = execute(stepper, command)
        outputs = result_outputs(command)
        returned = [value for value, out in zip(results, outputs, strict=True) if out is None]
        if command.kind == "reset":
            watch.invalid.clear()  # it was a random step after the reset
        elif is_recovery:
            watch.invalid += range(stepper.n_envs)
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


def _seed_globally(seed: np.random.SeedSequence) -> None:
    """Seed the global generators, which would be the same in all workers of one fork server."""
    words = seed.generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)  # noqa: NPY002  # environments may use it
