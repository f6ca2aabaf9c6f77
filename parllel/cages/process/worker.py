"""The program of a worker process: it makes environments and carries out its cage's commands."""

from __future__ import annotations

import faulthandler
import pickle
import signal
import socket
import time
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.cages.cage import Command
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
)
from parllel.cages.process.definitions import take_descriptors
from parllel.cages.process.replies import Reply, ReplyMemory, describe_failure, dumps
from parllel.cages.process.status_page import (
    BEGIN,
    END,
    StatusPage,
)
from parllel.cages.process.task import Task
from parllel.cages.process.watched_env import Watch
from parllel.cages.process.worker_envs import WorkerEnvs
from parllel.storages import Memory, Shared

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


class _Worker:
    """Environments, with the blocks of memory and the command forms that the cage has sent."""

    def __init__(self, channel: Channel, watch: Watch, task: Task) -> None:
        assert task.surroundings is not None
        task.surroundings.take_over()
        self._channel = channel
        self._watch = watch
        self._blocks: dict[int, Memory] = {}
        self._bytes: dict[int, NDArray[np.uint8]] = {}
        self._forms: dict[int, CommandForm] = {}
        self._commands: dict[tuple[int, bytes], Command] = {}
        self._envs = WorkerEnvs(task, watch)

    def run(self) -> None:
        """Send the spaces, carry out messages until the end, and close the environments."""
        with suppress(EOFError, ConnectionError):  # the cage has closed the channel, or has ended
            self._serve()
        self._envs.stepper.close()

    def _serve(self) -> None:
        channel, words = self._channel, self._watch.words
        body, sequence = None, None
        channel.send(READY, body=dumps((self._envs.found, None)))
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
            self._envs.stepper.reseed(pickle.loads(message.body))
        elif message.kind == FORGET:
            self._commands.clear()  # they hold views of all blocks, and are found anew
            for blocks in (self._blocks, self._bytes):
                blocks.pop(message.number, None)

    def _add_block(self, number: int, block: Memory) -> None:
        self._blocks[number] = block
        self._bytes[number] = block.array(0, (block.nbytes,), np.dtype(np.uint8))

    def _reply_to(self, message: Message) -> bytes | None:
        """Execute a command; return its reply, packed, or None where it is empty."""
        # Before the first command there is no memory for replies: all of them are pickled.
        reply_memory = ReplyMemory(self._bytes.get(REPLY_BLOCK, np.zeros(0, np.uint8)))
        return self._envs.reply_to(partial(self._work, message), reply_memory)

    def _work(self, message: Message) -> Reply | None:
        if message.kind == STATE:
            return self._envs.handle_states(*pickle.loads(message.body))
        command = self._find(message)._replace(max_random_steps=message.argument)
        return self._envs.execute(command, is_recovery=message.kind == RECOVER)

    def _find(self, message: Message) -> Command:
        key = message.number, message.body
        command = self._commands.get(key)
        if command is None:
            if len(self._commands) >= _MOST_COMMANDS:
                self._commands.clear()
            form = self._forms[message.number]
            command = self._commands[key] = rebuild_command(form, message.body, self._bytes)
        return command
