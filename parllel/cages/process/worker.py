"""What runs in a worker process: environments that carry out what their cage's messages say."""

from __future__ import annotations

import faulthandler
import itertools
import pickle
import random
import signal
import socket
import time
from collections.abc import Sequence
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
    Channel,
    Message,
)
from parllel.cages.process.command_forms import MAILBOX, Form, find_command, places_of_results
from parllel.cages.process.replies import Letter, Mailbox, describe_failure, dumps
from parllel.cages.process.status_page import BEGIN, END, Board
from parllel.cages.process.task import Task
from parllel.cages.process.watched_env import Watch, WatchedEnv
from parllel.cages.stepper import Columns, Stepper
from parllel.storages import Memory, Shared

TRACE_SIGNAL: Any = getattr(signal, "SIGUSR1", None)  # Windows has none, and no ProcessCage
"""Has a worker write where it is to its board, whatever it is doing."""

# Commands whose views are kept, 2 kB each: those of a larger ring are found anew in each round.
_MOST_COMMANDS = 8192


def run_worker(end: socket.socket, board_descriptor: int) -> None:
    """Carry out messages until the cage closes the worker, or is gone.

    Args:
        end: the worker's end of the socket.
        board_descriptor: of the board's file.
    """
    board = Board(board_descriptor)
    trace = board.open_trace()
    faulthandler.enable(trace)
    faulthandler.register(TRACE_SIGNAL, trace)
    channel = Channel(end)
    watch = Watch(board.words)
    try:
        task = channel.read().body
    except (EOFError, ConnectionError):  # the cage is gone
        return
    try:
        worker = _Worker(channel, watch, pickle.loads(task))
    except BaseException as error:
        with suppress(ConnectionError):
            channel.send(READY, body=dumps((None, describe_failure(error, watch.failed))))
        return
    worker.run()


class _WorkerStepper(Stepper):
    """A stepper that can take the place of one that was lost with its process.

    Attributes:
        is_lost: whether the next step resets instead. It is truncated and no transition.
    """

    is_lost = False

    def step(self, actions: Sequence[Any]) -> Columns:
        """Step all environments, or begin anew."""
        if not self.is_lost:
            return super().step(actions)
        self.is_lost = False
        observations, _ = self.reset()
        n_envs = self.n_envs
        return Columns(
            observations, [0.0] * n_envs, [False] * n_envs, [True] * n_envs, [{}] * n_envs
        )


class _Worker:
    """Environments, and the places that they were told of."""

    def __init__(self, channel: Channel, watch: Watch, task: Task) -> None:
        task.surroundings.take_over()
        watch.restarts = task.restarts
        _seed_globally(task.seeds[0])
        make_env, env_kwargs, make_traj_info = pickle.loads(task.calls)
        numbered = zip(itertools.count(), task.seeds, strict=False)
        self._channel = channel
        self._watch = watch
        self._blocks: dict[int, Memory] = {}
        self._bytes: dict[int, NDArray[np.uint8]] = {}
        self._forms: dict[int, Form] = {}
        self._commands: dict[tuple[int, bytes], Command] = {}
        self.stepper = _WorkerStepper(
            lambda: WatchedEnv(*next(numbered), partial(make_env, **env_kwargs), watch),
            {},
            make_traj_info,
            n_envs=len(task.seeds),
            seed=task.seeds,
        )

    def run(self) -> None:
        """Tell the spaces, carry out messages until the end, and close the environments."""
        with suppress(EOFError, ConnectionError):  # the cage has closed the channel, or is gone
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
                    body, sequence = self._answer(message), message.sequence
                    words[END] = time.perf_counter_ns()
                channel.send(DONE, body=body or b"", sequence=sequence)
            else:
                self._learn(message)

    def _learn(self, message: Message) -> None:
        """Take in what commands are about."""
        if message.kind == FORM:
            self._forms[message.number] = pickle.loads(message.body)
        elif message.kind == BLOCK:
            (descriptor,) = self._channel.read_descriptors(1)
            nbytes = int.from_bytes(message.body, "little")
            self._add_block(message.number, Shared(nbytes, descriptor=descriptor))
        elif message.kind == INHERITED:
            self._add_block(message.number, pickle.loads(message.body))
        elif message.kind == FORGET:
            self._commands.clear()  # they hold views of all blocks, and are found anew
            for blocks in (self._blocks, self._bytes):
                blocks.pop(message.number, None)

    def _add_block(self, number: int, block: Memory) -> None:
        self._blocks[number] = block
        self._bytes[number] = block.array(0, (block.nbytes,), np.dtype(np.uint8))

    def _answer(self, message: Message) -> bytes | None:
        """Execute a command; return what there is to tell, packed."""
        self._watch.clear()
        mailbox = Mailbox(self._bytes[MAILBOX])
        try:
            command = self._find(message)._replace(max_random_steps=message.argument)
            letter = self._execute(command, is_recovery=message.kind == RECOVER)
            return None if letter is None else mailbox.pack(letter)
        except BaseException as error:
            failure = describe_failure(error, self._watch.failed)
            completed, restarted = self.stepper.take_completed(), self._watch.restarted
            return mailbox.pack(Letter((), {}, completed, (), restarted, failure))

    def _find(self, message: Message) -> Command:
        key = message.number, message.body
        command = self._commands.get(key)
        if command is None:
            if len(self._commands) >= _MOST_COMMANDS:
                self._commands.clear()
            form = self._forms[message.number]
            command = self._commands[key] = find_command(form, message.body, self._bytes)
        return command

    def _execute(self, command: Command, *, is_recovery: bool) -> Letter | None:
        stepper, watch = self.stepper, self._watch
        stepper.is_lost = is_recovery and command.kind != "reset"
        results = execute(stepper, command)
        places = places_of_results(command)
        wanted = [result for result, place in zip(results, places, strict=True) if place is None]
        if command.kind == "reset":
            watch.invalid.clear()  # it was a random step after the reset
        elif is_recovery:
            watch.invalid += range(stepper.n_envs)
        if not (wanted or stepper.final_obs or watch.invalid or watch.restarted):
            return None
        final_obs, completed = {}, []
        ended = zip(stepper.final_obs.items(), stepper.take_completed(), strict=True)
        for (number, observation), traj in ended:
            if number not in watch.invalid:  # nobody knows how that episode would have ended
                final_obs[number] = observation
                completed.append(traj)
        return Letter(wanted, final_obs, completed, watch.invalid, watch.restarted)


def _seed_globally(seed: np.random.SeedSequence) -> None:
    """Seed the global generators: all workers come from one process, and would be alike."""
    words = seed.generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)  # noqa: NPY002  # environments may use it, whatever we think of that
