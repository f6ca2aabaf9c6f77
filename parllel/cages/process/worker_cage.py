"""WorkerCage: what cages with a worker have in common; a kind of worker and its messages differ."""

from __future__ import annotations

import logging
import os
import pickle
import weakref
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NoReturn, Protocol

import numpy as np

from parllel.cages.cage import OF_THE_PARENT, Cage, Command
from parllel.cages.episodes import TrajInfo
from parllel.cages.process.channel import EXECUTE, RECOVER
from parllel.cages.process.command_forms import result_outputs
from parllel.cages.process.replies import Failure, Reply, ReplyMemory
from parllel.cages.process.worker_error import WorkerError
from parllel.cages.process.worker_lost_error import WorkerLostError
from parllel.cages.seeds import Seed, restart_seed, seed_of, seed_words, spawn_seeds
from parllel.cages.values.any_env import AnyEnv
from parllel.cages.values.env_checks import check_make_env
from parllel.tree import TreePath

OnWorkerError = Literal["raise", "restart"]
"""What a cage does where an environment raises or a worker is lost: raise a WorkerError, or make a
new environment in the place of the lost one."""

TIMEOUT_S = 60.0
"""Seconds of silence after which a worker is killed, unless `timeout_s` says otherwise."""
_LONGEST_S = 1_000_000.0  # system calls take no longer waits
_SEQUENCES = 2**32
_MOST_LOSSES = 3  # one command may lose so many workers; the last loss is an error

_EMPTY = Reply()

_GONE = "its environments are gone; make a new one"
_CLOSED, _LOST = f"the cage is closed: {_GONE}", f"the cage has lost its worker: {_GONE}"

_logger = logging.getLogger(__name__)

# The cages of this process, so that a forked child refuses them. Otherwise both processes would
# read each other's replies.
_cages: weakref.WeakSet[WorkerCage] = weakref.WeakSet()


class Worker(Protocol):
    """A process with environments, elsewhere. It is sent messages, and replies to each in turn."""

    @property
    def is_reply_due(self) -> bool:
        """Whether the last command was sent as a whole, and its reply has not been read."""

    def await_ready(self) -> tuple[tuple[Any, Any, Any] | None, Failure | None]:
        """Wait until the environments are made; return their spaces and agents, or the error."""

    def send_seeds(self, seeds: Sequence[np.random.SeedSequence]) -> None:
        """Send the seeds of the next reset."""

    def ask_for_states(self, order: str, states: object, sequence: int) -> None:
        """Send a question about states."""

    def await_reply(self, sequence: int) -> bytes:
        """Wait for the reply to a command and return it, packed; an empty reply has no bytes."""

    def has_sign(self) -> bool:
        """Tell whether a reply is there, or the worker has ended. Returns at once."""

    @property
    def busy_span(self) -> tuple[float, float]:
        """When the work of the last command began and ended, in s of `time.perf_counter`."""

    def lost_for_garbage(self, what: str) -> WorkerLostError:
        """Kill the worker, which sent something else than a message."""

    @property
    def close(self) -> Callable[[], object]:
        """Let the worker close its environments and end. Called again, it does nothing."""


class WorkerCage(Cage):
    """A cage whose environments are in one worker; an abstract class.

    It waits for replies, tells of errors, has lost workers replaced, and keeps what was not written
    to rows. A subclass starts workers, sends commands and writes outputs. It sets its own
    attributes before it calls this constructor, which starts the worker.

    >>> from parllel.cages import ProcessCage
    >>> issubclass(ProcessCage, WorkerCage)
    True

    Args:
        make_env, env_kwargs, make_traj_info, n_envs, seed, timeout_s, on_worker_error, first_env:
            as for `ProcessCage`.
    """

    _worker: Worker
    """The worker that was started last."""

    def __init__(
        self,
        make_env: Callable[..., AnyEnv],
        env_kwargs: Mapping[str, Any] | None,
        make_traj_info: Callable[[], TrajInfo],
        *,
        n_envs: int,
        seed: Seed,
        timeout_s: float,
        on_worker_error: OnWorkerError,
        first_env: int,
    ) -> None:
        _check(make_env, timeout_s, on_worker_error)
        self.n_envs, self.goes_on = n_envs, True
        self._seeds = spawn_seeds(seed, n_envs)
        self._timeout_s, self._first_env = timeout_s, first_env
        self._restarts = on_worker_error == "restart"
        self._calls = {
            "make_env": make_env,
            "env_kwargs": dict(env_kwargs or {}),
            "make_traj_info": make_traj_info,
        }
        self._pending: Command | None = None
        self._reply, self._end = _EMPTY, ""  # the reason why it can't be used any more, if it can't
        self._reply_memory = ReplyMemory(np.zeros(0, np.uint8))  # replies come as a whole
        self._completed: list[TrajInfo] = []
        self._left_out: list[TreePath] = []
        self._is_reset, self._sequence = False, 0  # the number of the last command
        self._start_worker()
        try:
            self.observation_space, self.action_space, self.agents = self._await_spaces()
        except BaseException:
            self._worker.close()
            raise
        _cages.add(self)

    @abstractmethod
    def _start_worker(self) -> None:
        """Start a worker, as `_worker`, for environments with the seeds of this moment."""

    @abstractmethod
    def _read_inputs(self, command: Command) -> None:
        """Take what the worker is to be sent from the memory of the caller, who may change it."""

    @abstractmethod
    def _send(self, kind: int, command: Command) -> None:
        """Send a command to the worker, with the number `_sequence`.

        Args:
            kind: EXECUTE or RECOVER.
            command: a command that `_prepare` returned.
        """

    @abstractmethod
    def _write_outputs(self, command: Command) -> None:
        """Copy what the worker has not written to the outputs itself."""

    @abstractmethod
    def _action_of(self, command: Command, environment: int) -> Any:
        """Return the last action of an environment; None where it isn't stored in this process."""

    def _await_spaces(self) -> tuple[Any, Any, Any]:
        """Wait until the worker has made its environments; return their spaces and agents."""
        try:
            spaces, failure = self._worker.await_ready()
        except WorkerLostError as lost:
            raise self._error_of(lost, None) from None
        if failure is not None:
            self._raise(f"the environments can't be made: {failure.summary}", failure)
        assert spaces is not None
        return spaces

    def _raise(self, what: str, failure: Failure) -> NoReturn:
        error = self._error(what, failure.environment, failure.text, None)
        cause = _unpickled(failure)
        if cause is None:
            raise error
        raise cause from error

    def reseed(self, seed: Seed) -> None:
        """Have the next reset seed the environments, as the first one of a new cage does.

        Raises:
            RuntimeError, WorkerError: as for `start_command`.
            TypeError, ValueError: as for the seed of the constructor.
        """
        self._finish_pending()
        self._seeds, self._is_reset = spawn_seeds(seed, self.n_envs), False
        self._worker.send_seeds(self._seeds)

    def check_state(self) -> None:
        """Refuse environments whose states can't be saved."""
        self._ask("check")

    def get_state(self) -> list[dict[str, Any]]:
        """Wait for the command under way; return the state of each environment as plain data."""
        states: list[dict[str, Any]] = self._ask("get")
        return states

    def set_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Have the environments go on from states that `get_state` returned."""
        self._is_reset = False
        self._ask("set", list(states))
        seeds = [state["env"].get("watch", state)["seed"] for state in states]
        self._seeds, self._is_reset = [seed_of(seed) for seed in seeds], True
        self._reply, self._completed = _EMPTY, []

    def _ask(self, order: str, states: object = None) -> Any:
        """Have the worker check, get or set states, and wait for what it returns."""
        self._finish_pending()
        self._sequence = (self._sequence + 1) % _SEQUENCES
        self._worker.ask_for_states(order, states, self._sequence)
        try:
            reply = self._open(self._worker.await_reply(self._sequence))
        except WorkerLostError as lost:
            self._end = _LOST
            self._worker.close()
            raise self._error_of(lost, None) from None
        if reply.failure is not None:
            failure = Failure(*reply.failure)
            self._raise(f"{order} of states: {failure.summary}", failure)
        return reply.results[0]

    def start_command(self, command: Command) -> None:
        """Send a command to the worker; `await_step` waits for it.

        Raises:
            RuntimeError: the cage is closed, its worker is lost, the environments were never
                reset, or this process is a forked child of the one that made the cage.
            WorkerError: a command that was not waited for has failed.
        """
        self._finish_pending()
        if command.kind == "step" and not self._is_reset:
            raise RuntimeError("step before reset: call reset_async() and await_step() first")
        self._is_reset = True
        self._read_inputs(command)
        self._sequence = (self._sequence + 1) % _SEQUENCES
        # Set before the command is sent: otherwise Ctrl-C in between leaves a reply unread
        # (test_a_step_whose_message_is_interrupted_is_taken_once).
        self._pending = command
        self._send(EXECUTE, command)

    def _finish_pending(self) -> None:
        """Wait for a command that was not waited for; raise if the cage can't be used any more."""
        if self._pending is not None:
            self.await_step()
        if self._end:
            raise RuntimeError(self._end)

    def await_step(self) -> Any:  # Any: a tuple whose length the command decides
        """Wait for the command that was started and return its results; None if there was none.

        Raises:
            WorkerError: an environment raised, or the worker ended or was silent for `timeout_s`.
                In the first case, the cage can still be used.
            RuntimeError: this process is a forked child of the one that made the cage.
        """
        command = self._pending
        if command is None:
            if self._end is OF_THE_PARENT:
                raise RuntimeError(self._end)
            return None
        try:
            if not self._worker.is_reply_due:  # Ctrl-C cut it short, or the wait for it
                self._send(EXECUTE, command)
            body = self._worker.await_reply(self._sequence)
            self._pending = None  # no sooner: where Ctrl-C cuts the wait, the reply is to come
            reply = self._open(body)
        except WorkerLostError as lost:
            self._pending = None
            reply = self._recover(command, lost)
        self.busy_span = self._worker.busy_span
        self._reply = reply
        if reply is not _EMPTY:
            self._take_in(reply, command)
        self._write_outputs(command)
        returned = iter(reply.results)
        outputs = result_outputs(command)
        return tuple(next(returned) if out is None else out for out in outputs)

    def _open(self, body: bytes) -> Reply:
        if not body:
            return _EMPTY
        try:
            return self._reply_memory.unpack(body)
        except (ImportError, AttributeError) as error:
            what = f"the worker's reply has an object whose class is unknown here: {error}"
            raise self._error(what, None, "", self._pending) from error
        except Exception as error:  # any, as pickle raises it: the bytes are no reply
            raise self._worker.lost_for_garbage(f"what is no reply ({error})") from None

    def _take_in(self, reply: Reply, command: Command) -> None:
        self._completed += reply.completed
        for number, text in reply.restarted.items():
            self.n_restarts += 1
            self._seeds[number] = restart_seed(self._seeds[number])
            number += self._first_env
            _logger.warning("environment %d failed and was made anew:\n%s", number, text)
        self._left_out += reply.left_out
        if reply.failure is not None:
            failure = Failure(*reply.failure)
            what = f"the worker raised an error: {failure.summary}"
            error = self._error(what, failure.environment, failure.text, command)
            raise error from _unpickled(failure)

    def _recover(self, command: Command, lost: WorkerLostError) -> Reply:
        """Replace a lost worker by a new one, and return the reply of that; or raise."""
        self._end = _LOST  # until the new one has replied
        for _ in range(_MOST_LOSSES):
            error = self._error_of(lost, command)
            self._worker.close()
            if not self._restarts:
                break
            _logger.warning("%s\nits %d environments are made anew", error, self.n_envs)
            self._seeds = [restart_seed(seed) for seed in self._seeds]
            self.n_restarts += self.n_envs
            self._start_worker()
            try:
                self._await_spaces()
                self._send(RECOVER, command)
                reply = self._open(self._worker.await_reply(self._sequence))
            except WorkerLostError as another:
                lost = another
            except BaseException:
                self._worker.close()
                raise
            else:
                self._end = ""
                return reply
        self._worker.close()
        raise error

    def _error_of(self, lost: WorkerLostError, command: Command | None) -> WorkerError:
        return self._error(lost.what, lost.environment, lost.trace, command)

    def _error(
        self, what: str, environment: int | None, text: str, command: Command | None
    ) -> WorkerError:
        seed = action = None
        if environment is not None:
            seed, _ = seed_words(self._seeds[environment])
            action = None if command is None else self._action_of(command, environment)
            environment += self._first_env
        return WorkerError(
            what, environment=environment, seed=seed, action=action, worker_traceback=text
        )

    @property
    def final_obs(self) -> Mapping[int, Any]:
        """True final observations of the last step, by the number of the environment."""
        return self._reply.final_obs

    @property
    def invalid(self) -> Collection[int]:
        """Numbers of the environments that were made anew in the last step."""
        return self._reply.invalid

    @property
    def is_ready(self) -> bool:
        """Whether the worker has replied, or has ended, or nothing was started."""
        return self._pending is None or self._worker.has_sign()

    @property
    def gives_invalid_rows(self) -> bool:
        """Whether environments are made anew when they fail, with "restart"."""
        return self._restarts

    def take_completed(self) -> list[TrajInfo]:
        """Return the episodes that ended since the last call, in the order of their ends."""
        completed, self._completed = self._completed, []
        return completed

    def take_left_out(self) -> list[TreePath]:
        """Return the paths of numbers in infos that are new since the last call and not stored."""
        left_out, self._left_out = self._left_out, []
        return left_out

    def close(self) -> None:
        """Close the environments and end the worker, in 5 s at most. Called again, do nothing."""
        self._end = _CLOSED
        self._pending = None
        self._worker.close()


def _leave_cages_to_the_parent() -> None:
    for cage in _cages:
        cage._end, cage._pending = OF_THE_PARENT, None


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_leave_cages_to_the_parent)


def _check(make_env: object, timeout_s: float, on_worker_error: str) -> None:
    check_make_env(make_env)
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= _LONGEST_S:
        raise ValueError(
            f"timeout_s: got {timeout_s}, expected seconds, more than 0 and at most {_LONGEST_S:g}"
        )
    if on_worker_error not in ("raise", "restart"):
        raise ValueError(f'on_worker_error: got {on_worker_error!r}, expected "raise" or "restart"')


def _unpickled(failure: Failure) -> Exception | None:
    """Return the exception itself; None where it can't be unpickled in this process."""
    if failure.error is None:
        return None
    try:
        error = pickle.loads(failure.error)
    except Exception:  # raised by its class or a module; its text is in the failure in any case
        return None
    return error if isinstance(error, Exception) else None
