"""WorkerProcess: a cage's view of its worker. Every wait for the worker has a longest time."""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import socket
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from parllel.cages.cage import Command
from parllel.cages.process.channel import (
    BLOCK,
    DONE,
    FORGET,
    FORM,
    INHERITED,
    READY,
    SEED,
    SET_UP,
    STATE,
    Channel,
    GarbageError,
    Message,
    pack,
)
from parllel.cages.process.command_forms import CommandForms, PackedCommand
from parllel.cages.process.fork_client import ForkClient, Forked, fork_worker
from parllel.cages.process.fork_server import EXIT_CODE
from parllel.cages.process.processors import bind, check_processor
from parllel.cages.process.replies import Failure, dumps
from parllel.cages.process.status_page import CALL, StatusPage
from parllel.cages.process.task import Task
from parllel.cages.process.worker import TRACE_SIGNAL
from parllel.cages.process.worker_lost_error import WorkerLostError
from parllel.storages import Shared

StartMethod = Literal["forkserver", "fork"]

_CLOSE_S = 5.0  # longest wait for environments to close, before the worker is killed
_EXIT_CODE_S = 5.0  # longest wait for the exit code of a worker that has ended
_TRACE_S = 1.0  # longest wait for the traceback of a worker that hangs
_N_GLANCES = 10  # so often a wait of `timeout_s` looks whether there was progress

_logger = logging.getLogger(__name__)


class WorkerProcess:
    """A worker process. It is sent commands, and its end or its silence is an error.

    >>> import gymnasium as gym
    >>> import numpy as np
    >>> from parllel.cages import TrajInfo
    >>> from parllel.cages.process.task import packed_task
    >>> env_kwargs = {"id": "CartPole-v1"}
    >>> calls = {"make_env": gym.make, "env_kwargs": env_kwargs, "make_traj_info": TrajInfo}
    >>> with packed_task(calls, [np.random.SeedSequence(0)]) as task:
    ...     worker = WorkerProcess(task, timeout_s=60, start_method="forkserver")
    >>> (observation_space, action_space, agents), failure = worker.await_ready()
    >>> action_space
    Discrete(2)
    >>> worker.close()

    Args:
        task: the environments that the worker makes.
        timeout_s: longest silence of a worker that owes a reply, from the last call of one of its
            environments on; and longest wait for its first sign of life.
        start_method, processor: as for `ProcessCage`.

    Attributes:
        inherited: the blocks of memory that the worker has from its start.
        is_reply_due: whether the last command was sent as a whole, and its reply has not been
            read. False after `start` means that Ctrl-C came in between.

    Raises:
        OSError: the system has no process or descriptor left.
        MemoryError: there is no memory for the status page.
    """

    def __init__(
        self,
        task: Task,
        timeout_s: float,
        start_method: StartMethod,
        processor: int | None = None,
    ) -> None:
        self._processor = check_processor(processor)
        self._timeout_s = timeout_s
        self._glance_ms = timeout_s * 1000 / _N_GLANCES
        self._owner = os.getpid()
        self._n_blocks = self._n_forms = 0
        self._open_blocks: set[int] = set()
        self._n_due = 0  # replies to commands that were sent, or sent again, and were not read
        self.is_reply_due = False
        status_page = StatusPage()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                fork = fork_worker if start_method == "forkserver" else _fork_worker_of_this
                self._forked = fork(theirs, status_page.descriptor)
        except BaseException:
            ours.close()
            status_page.close()
            raise
        self._status_page = status_page
        self.inherited = self._forked.client.inherited
        self._channel = Channel(ours, timeout_s)
        self._poll = select.poll()
        self._poll.register(ours, select.POLLIN)
        self._poll.register(self._forked.exit_pipe, select.POLLIN)
        self.close = weakref.finalize(
            self,
            _close,
            self._channel,
            self._forked,
            status_page,
            self._owner,
            min(timeout_s, _CLOSE_S),
        )
        with suppress(OSError):  # the worker has ended: `await_ready` raises
            descriptors = task.descriptors
            body = dumps(task._replace(descriptors=()))
            self._channel.send(SET_UP, len(descriptors), body, descriptors)

    @property
    def process(self) -> int:
        """The number of the process."""
        return self._forked.process

    def await_ready(self) -> tuple[tuple[Any, Any, Any] | None, Failure | None]:
        """Wait until the environments are made; return their spaces and the form of their agents.

        Where make_env failed, its error is returned instead.

        Raises:
            WorkerLostError: the worker ended, or took longer than `timeout_s`.
        """
        message = self._await()
        if message.kind != READY:
            raise self.lost_for_garbage(f"a message of kind {message.kind}")
        if self._processor is not None:
            bind(self.process, self._processor)
        try:
            spaces, failure = pickle.loads(message.body)
            return spaces, None if failure is None else Failure(*failure)
        except (ImportError, AttributeError):  # a class of the spaces is unknown here
            raise
        except Exception as error:
            raise self.lost_for_garbage(f"what is no space ({error})") from None

    def start(self, kind: int, command: Command, forms: CommandForms, sequence: int) -> None:
        """Send a command, and before it the blocks and forms that are new to the worker.

        Where the worker is lost, `await_reply` raises, not this method.

        Args:
            kind: EXECUTE or RECOVER.
            command: a command that was packed with these forms.
            forms: the forms of the cage.
            sequence: the number of the command. The worker carries a command out once, even if it
                is sent again with the same number.
        """
        with suppress(OSError):
            if self._n_forms < forms.n_forms:
                self._introduce(forms)
            packed: PackedCommand = command.packed
            argument = command.max_random_steps
            self._n_due += 1
            self._channel.post(pack(kind, packed.form, packed.offsets, argument, sequence))
        self.is_reply_due = True

    def send_seeds(self, seeds: Sequence[np.random.SeedSequence]) -> None:
        """Send the seeds of the next reset. Where the worker is lost, `await_reply` raises."""
        with suppress(OSError):
            self._channel.send(SEED, body=dumps(seeds))

    def ask_for_states(self, order: str, states: object, sequence: int) -> None:
        """Send a question about states. Where the worker is lost, `await_reply` raises.

        Args:
            order: "check", "get" or "set".
            states: those to be set; else None.
            sequence: the number of the question, which is that of the next command.
        """
        with suppress(OSError):
            body = dumps((order, states))
            self._n_due += 1
            self._channel.send(STATE, body=body, sequence=sequence)

    def await_reply(self, sequence: int) -> bytes:
        """Wait for the reply to a command and return it, packed; an empty reply has no bytes.

        Raises:
            WorkerLostError: the worker ended, or took longer than `timeout_s`.
        """
        while True:
            message = self._await()
            if message.kind != DONE or not self._n_due:
                raise self.lost_for_garbage(f"a message of kind {message.kind}")
            self._n_due -= 1
            if message.sequence == sequence:  # not the reply to an earlier one that was sent again
                return message.body

    def has_sign(self) -> bool:
        """Tell whether a reply is there, or the worker has ended. Returns at once."""
        return bool(self._poll.poll(0))

    @property
    def busy_span(self) -> tuple[float, float]:
        """When the work of the last command began and ended, in s of `time.perf_counter`."""
        return self._status_page.busy_span

    def kill(self) -> None:
        """Kill the worker, and the processes that its environments have started."""
        self._forked.client.send_signal(self.process, signal.SIGKILL)

    def _introduce(self, forms: CommandForms) -> None:
        """Send the worker new blocks and forms, and the numbers of blocks that were closed."""
        channel = self._channel
        for number in [number for number in self._open_blocks if forms.block(number) is None]:
            channel.send(FORGET, number)
            self._open_blocks.remove(number)
        for number in range(self._n_blocks, forms.n_blocks):
            block = forms.block(number)
            if isinstance(block, Shared):
                size = block.nbytes.to_bytes(8, "little")
                channel.send(BLOCK, number, size, [block.descriptor])
            elif block is not None:
                channel.send(INHERITED, number, dumps(block))  # pickled as its name
            if block is not None:
                self._open_blocks.add(number)
        self._n_blocks = forms.n_blocks
        for number in range(self._n_forms, forms.n_forms):
            channel.send(FORM, number, dumps(forms.form(number)))
        self._n_forms = forms.n_forms

    def _await(self) -> Message:
        if self._channel.is_cut:
            what = "the worker is given up: Ctrl-C, or another exception, cut a message short"
            raise WorkerLostError(what, None, "")
        signs = self._poll.poll(self._glance_ms) or self._await_sign()
        ready = {descriptor for descriptor, _ in signs}
        if not ready:
            raise self._lost_for_time()
        self.is_reply_due = False
        try:
            if self._channel.fileno() in ready:  # even if it has ended since: it replied before
                return self._channel.read()
        except (EOFError, ConnectionError):
            pass
        except OSError:
            raise self._lost_for_time() from None
        except GarbageError as error:
            raise self.lost_for_garbage(str(error)) from None
        raise self._lost_for_good()

    def _await_sign(self) -> list[tuple[int, int]]:
        """Return what `poll` tells, nothing after `timeout_s` in which no environment was called.

        Each glance counts no more time than it asked for: the time in which this process was
        stopped (SIGSTOP) is no silence of the worker, which may have been stopped, too.
        """
        words, n_silent = self._status_page.words, 1  # the first glance was taken before
        ready: list[tuple[int, int]] = []
        call = words[CALL]
        while not ready and n_silent < _N_GLANCES:
            ready = self._poll.poll(self._glance_ms)
            before, call = call, words[CALL]
            n_silent = n_silent + 1 if call == before else 0
        return ready

    def _lost_for_good(self) -> WorkerLostError:
        exit_code = read_exit_code(self._forked.exit_pipe, _EXIT_CODE_S)
        if exit_code is None:
            what = "was ended with the process that had forked it"
        elif exit_code < 0:
            what = f"was killed by signal {-exit_code} ({signal.strsignal(-exit_code)})"
        else:
            what = f"ended with exit code {exit_code}"
        trace = self._status_page.read_trace()
        return WorkerLostError(f"the worker {what}", self._status_page.environment, trace)

    def lost_for_garbage(self, what: str) -> WorkerLostError:
        """Kill the worker, which sent something else than a message.

        Args:
            what: a noun phrase that says what it sent.
        """
        self.kill()
        what = f"the worker sent {what}, and was killed: something writes to its socket"
        return WorkerLostError(what, self._status_page.environment, "")

    def _lost_for_time(self) -> WorkerLostError:
        """Let the worker write where it hangs, and kill it."""
        self._forked.client.send_signal(self.process, TRACE_SIGNAL)
        end, trace, before = time.monotonic() + _TRACE_S, "", None
        while time.monotonic() < end and not (trace and trace == before):
            time.sleep(0.02)
            before, trace = trace, self._status_page.read_trace()
        self.kill()
        what = f"the worker did not reply within {self._timeout_s:g} s (timeout_s) and was killed"
        return WorkerLostError(what, self._status_page.environment, trace)


def _fork_worker_of_this(end: socket.socket, page_descriptor: int) -> Forked:
    """Start a worker by a server of its own, which is forked from this process as it is now."""
    client = ForkClient(inherits=True)
    try:
        return client.fork(end, page_descriptor)
    except BaseException:
        client.close()
        raise


def read_exit_code(exit_pipe: int, timeout_s: float) -> int | None:
    """Return how a worker ended, as `os.waitstatus_to_exitcode` has it; None where it is unknown.

    Args:
        exit_pipe: the descriptor that the exit code is read from.
        timeout_s: longest wait for the worker's end.
    """
    poll = select.poll()
    poll.register(exit_pipe, select.POLLIN)
    if not poll.poll(timeout_s * 1000):
        return None
    packet = os.read(exit_pipe, EXIT_CODE.size)
    if len(packet) < EXIT_CODE.size:
        return None
    exit_code: int
    (exit_code,) = EXIT_CODE.unpack(packet)
    return exit_code


def _close(
    channel: Channel, forked: Forked, status_page: StatusPage, owner: int, timeout_s: float
) -> None:
    """Let the worker close its environments and end; kill it where it does not in time."""
    try:
        # A forked child must not end its parent's worker
        # (test_a_forked_child_leaves_its_parents_worker_alone).
        if os.getpid() == owner:
            _end(channel, forked, timeout_s)
    finally:
        channel.close()
        os.close(forked.exit_pipe)
        status_page.close()
        if not forked.client.is_shared:
            forked.client.close()


def _end(channel: Channel, forked: Forked, timeout_s: float) -> None:
    with suppress(OSError):  # it has ended
        channel.shut_down()
    poll = select.poll()
    poll.register(forked.exit_pipe, select.POLLIN)
    if not poll.poll(timeout_s * 1000):
        forked.client.send_signal(forked.process, signal.SIGKILL)
        poll.poll(_EXIT_CODE_S * 1000)
        _logger.warning("worker %d did not close within %g s: killed", forked.process, timeout_s)
    elif (read_exit_code(forked.exit_pipe, 0) or 0) > 0:
        _logger.warning("worker %d failed to close its environments", forked.process)
