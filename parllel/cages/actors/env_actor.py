"""EnvActor: environments in a Ray actor, which carry out the commands of a RayCage."""

from __future__ import annotations

import pickle
import sys
import threading
import time
import traceback
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.cages.actors.sent_forms import MadeCommand, SentForm
from parllel.cages.process.channel import RECOVER
from parllel.cages.process.replies import Reply, ReplyMemory, describe_failure, dumps
from parllel.cages.process.status_page import CALL, MOST_ENVIRONMENTS
from parllel.cages.process.watched_env import Watch
from parllel.cages.process.worker_envs import WorkerEnvs

_NO_CALL = -1
_NOTHING = np.zeros(0, np.uint8)


class ActorReply(NamedTuple):
    """What an actor returns of a command.

    >>> ActorReply(sequence=1, body=b"", written=np.zeros(8, np.uint8), busy_s=0.001).body
    b''

    Args:
        sequence: the number of the command.
        body: all that is not written to rows, as `ReplyMemory.pack` packs it; empty where that is
            nothing.
        written: uint8, the arrays that the command writes.
        busy_s: how long the actor worked on it.
    """

    sequence: int
    body: bytes
    written: NDArray[np.uint8]
    busy_s: float


class ActorCall(NamedTuple):
    """What an actor is doing.

    >>> ActorCall(call=7, environment=0, trace="").environment
    0

    Args:
        call: another number in each call of an environment, as `calls_of` yields it.
        environment: the number of the environment that was called last; None where none was.
        trace: the stack of the thread that calls environments; empty where none does.
    """

    call: int
    environment: int | None
    trace: str


class EnvActor:
    """Environments that one cage steps. Ray makes this object, in a process anywhere on a cluster.

    All methods but `look` are called in one thread, one after the other. A command that is sent
    again, after Ctrl-C, has the same number: it is carried out once.

    >>> import gymnasium as gym
    >>> from parllel.cages import TrajInfo
    >>> from parllel.cages.process.task import packed_task
    >>> env_kwargs = {"id": "CartPole-v1"}
    >>> calls = {"make_env": gym.make, "env_kwargs": env_kwargs, "make_traj_info": TrajInfo}
    >>> actor = EnvActor()
    >>> with packed_task(calls, [np.random.SeedSequence(0)], is_near=False) as task:
    ...     (observation_space, action_space, agents), failure = pickle.loads(
    ...         actor.make(pickle.dumps(task))
    ...     )
    >>> action_space
    Discrete(2)
    >>> actor.close()
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._words = memoryview(array("q", [_NO_CALL] * (CALL + 1)))
        self._watch = Watch(self._words)
        self._envs: WorkerEnvs | None = None
        self._made: dict[int, MadeCommand] = {}
        self._last: ActorReply | None = None
        self._thread: int | None = None  # that calls environments at the moment

    def make(self, task: bytes) -> bytes:
        """Make the environments of a pickled `Task`; return spaces and agents, or the failure.

        Those that were made before, and closed, are forgotten.
        """
        self._begin()
        self._thread = threading.get_ident()
        try:
            self._envs = WorkerEnvs(pickle.loads(task), self._watch)
            return dumps((self._envs.found, None))
        except BaseException as error:  # a panic of a Rust extension is no Exception
            return dumps((None, describe_failure(error, self._watch.failed)))
        finally:
            self._thread = None

    def carry_out(
        self,
        kind: int,
        number: int,
        form: SentForm | None,
        inputs: NDArray[np.uint8],
        max_random_steps: int,
        sequence: int,
    ) -> ActorReply:
        """Carry out a command.

        Args:
            kind: EXECUTE or RECOVER.
            number: that of the form.
            form: the form itself, where it may be new to this actor.
            inputs: uint8, the arrays that the command reads.
            max_random_steps: as for `Command`.
            sequence: the number of the command.
        """
        if form is not None and number not in self._made:
            self._made[number] = form.make()
        made = self._made[number]

        def work() -> Reply | None:
            made.inputs[...] = inputs
            command = made.command._replace(max_random_steps=max_random_steps)
            return self._own_envs.execute(command, is_recovery=kind == RECOVER)

        return self._reply_to(work, made.outputs, sequence)

    def handle_states(self, question: bytes, sequence: int) -> ActorReply:
        """Check, get or set states: a pickled pair of the order and the states."""
        work = lambda: self._own_envs.handle_states(*pickle.loads(question))  # noqa: E731
        return self._reply_to(work, _NOTHING, sequence)

    def _reply_to(
        self, work: Callable[[], Reply | None], written: NDArray[np.uint8], sequence: int
    ) -> ActorReply:
        if self._last is None or self._last.sequence != sequence:
            begin_s, self._thread = time.perf_counter(), threading.get_ident()
            try:
                body = self._own_envs.reply_to(work, ReplyMemory(_NOTHING)) or b""
            finally:
                self._thread = None
            self._last = ActorReply(sequence, body, written, time.perf_counter() - begin_s)
        return self._last

    def reseed(self, seeds: bytes) -> None:
        """Take the pickled seeds of the next reset."""
        self._own_envs.stepper.reseed(pickle.loads(seeds))

    @property
    def _own_envs(self) -> WorkerEnvs:
        assert self._envs is not None  # the cage has waited for `make`
        return self._envs

    def look(self) -> ActorCall:
        """Tell what the actor is doing; called in another thread."""
        call = self._words[CALL]
        environment = None if call == _NO_CALL else call % MOST_ENVIRONMENTS
        frame: Any = sys._current_frames().get(self._thread) if self._thread else None
        trace = "" if frame is None else "".join(traceback.format_stack(frame))
        return ActorCall(call, environment, trace)

    def close(self) -> None:
        """Close the environments."""
        if self._envs is not None:
            self._envs.stepper.close()
