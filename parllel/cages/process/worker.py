"""The program of a worker process: it makes environments and carries out its cage's commands."""

from __future__ import annotations

import faulthandler
import itertools
import pickle
import random
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.cages.cage import Command, execute
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
    STATE,
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
    END,
    StatusPage,
)
from parllel.cages.process.task import Task
from parllel.cages.process.watched_env import Watch, WatchedEnv
from parllel.cages.seeds import Seed
from parllel.cages.stepper import Columns, Stepper
from parllel.cages.values.agent_forms import no_step
from parllel.generator_states import python_and_numpy_state, set_python_and_numpy_state
from parllel.storages import Memory, Shared
from parllel.tree.fitting import MisfitError

TRACE_SIGNAL: Any = getattr(signal, "SIGUSR1", None)  # Windows has none, and no ProcessCage
"""Lets a worker write its traceback to its status page, whatever it is doing."""

# Commands are kept as NumPy views, 2 kB each. Those of a ring with more steps than this are made
# anew in each round.
_MOST_COMMANDS = 8192


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
        stepper = self.stepper
        found = stepper.observation_space, stepper.action_space, stepper.agents
        channel.send(READY, body=dumps((found, None)))
        while True:
            message = channel.read()
            if message.kind in (EXECUTE, RECOVER, STATE):
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
        # Before the first command there is no memory for replies: all of them are pickled.
        reply_memory = ReplyMemory(self._bytes.get(REPLY_BLOCK, np.zeros(0, np.uint8)))
        try:
            if message.kind == STATE:
                order, states = pickle.loads(message.body)
                return reply_memory.pack(Reply([self._handle_states(order, states)]))
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

    def _handle_states(self, order: str, states: Any) -> list[dict[str, Any]] | None:
        """Check, get or set the states of all environments."""
        if order == "get":
            return self.stepper.get_state()
        if order == "set":
            self.stepper.set_state(states)
        else:
            self.stepper.check_state()
        return None

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


def _seed_globally(seed: np.random.SeedSequence) -> None:
    """Seed the global generators, which would be the same in all workers of one fork server."""
    words = seed.generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)  # noqa: NPY002  # environments may use it
