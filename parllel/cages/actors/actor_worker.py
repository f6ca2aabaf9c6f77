"""ActorWorker: a Ray actor with environments, which is sent commands and whose end is an error."""

from __future__ import annotations

import importlib
import logging
import pickle
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.cages.actors.env_actor import ActorCall, ActorReply, EnvActor
from parllel.cages.actors.sent_forms import SentForms
from parllel.cages.cage import Command
from parllel.cages.process.replies import Failure, dumps
from parllel.cages.process.task import Task
from parllel.cages.process.worker_lost_error import WorkerLostError

_CLOSE_S = 5.0  # longest wait for environments to close, before the actor is killed
_LOOK_S = 1.0  # longest wait for an actor to tell what it is doing
_N_GLANCES = 10  # so often a wait of `timeout_s` looks whether there was progress
_WATCH = "watch"  # the name of the threads that call `look`

_logger = logging.getLogger(__name__)


class ActorWorker:
    """A Ray actor. It is sent commands, and its end or its silence is an error.

    Args:
        task: the environments that the actor makes, packed for another machine.
        timeout_s: longest silence of an actor that owes a reply, from the last call of one of its
            environments on; and longest wait until it has made its environments.
        options: what Ray's `ActorClass.options` takes: where the actor runs, and with what.

    Attributes:
        written: uint8, the arrays that the last command has written. It may be read-only memory of
            the object store.
        is_reply_due: as for `Worker`.

    Raises:
        RuntimeError: Ray is not initialised.
        ModuleNotFoundError: it is not installed.
        ValueError, TypeError: Ray refuses an option.
    """

    def __init__(self, task: Task, timeout_s: float, options: Mapping[str, Any]) -> None:
        self._ray = import_ray()
        check_initialised(self._ray)
        self._session = _session_of(self._ray)
        self._timeout_s = timeout_s
        self._n_envs = len(task.seeds)
        self._sent: set[int] = set()  # forms
        self._span = 0.0, 0.0
        self._begin_s = 0.0
        self._is_closed = False
        self._due: Any = None  # Any: Ray has no types that are worth waiting for
        self.written: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._actor: Any = start_actor(self._ray, options)
        self._ready: Any = self._actor.make.remote(dumps(task))

    @property
    def is_reply_due(self) -> bool:
        """Whether the last command was sent, and its reply has not been read."""
        return self._due is not None

    @property
    def busy_span(self) -> tuple[float, float]:
        """When the work of the last command began and ended, in s of `time.perf_counter`.

        It takes as long as the actor's own clock says, and begins when the command was sent.
        """
        return self._span

    def await_ready(self) -> tuple[tuple[Any, Any, Any] | None, Failure | None]:
        """Wait until the environments are made; return their spaces and the form of their agents.

        Where make_env failed, its error is returned instead.

        Raises:
            WorkerLostError: the actor ended, or no node of the cluster has started it in time.
            ImportError, AttributeError: a class of the spaces is unknown in this process.
        """
        spaces, failure = pickle.loads(self._await(self._ready))
        return spaces, None if failure is None else Failure(*failure)

    def start(
        self, kind: int, command: Command, forms: SentForms, inputs: NDArray[Any], sequence: int
    ) -> None:
        """Send a command. Where the actor is lost, `await_reply` raises, not this method."""
        number = command.packed.number
        form = None if number in self._sent else forms.form(number)
        self._begin_s = time.perf_counter()
        self._call("carry_out", kind, number, form, inputs, command.max_random_steps, sequence)
        self._sent.add(number)

    def send_seeds(self, seeds: Sequence[np.random.SeedSequence]) -> None:
        """Send the seeds of the next reset. Where the actor is lost, `await_reply` raises."""
        if self._why_unreachable() is None:
            self._actor.reseed.remote(dumps(seeds))

    def ask_for_states(self, order: str, states: object, sequence: int) -> None:
        """Send a question about states. Where the actor is lost, `await_reply` raises."""
        self._call("handle_states", dumps((order, states)), sequence)

    def _call(self, method: str, *arguments: object) -> None:
        self._due = None
        if self._why_unreachable() is None:
            self._due = getattr(self._actor, method).remote(*arguments)

    def await_reply(self, sequence: int) -> bytes:
        """Wait for the reply to a command and return it, packed; an empty reply has no bytes.

        Raises:
            WorkerLostError: the actor ended, or was silent for `timeout_s`.
        """
        reply = ActorReply(*self._await(self._due))
        self._due = None
        assert reply.sequence == sequence  # replies come in the order of commands
        self.written = reply.written
        self._span = self._begin_s, self._begin_s + reply.busy_s
        return reply.body

    def _await(self, due: Any) -> Any:
        """Wait for what a method returns; give up after `timeout_s` in which nothing was called."""
        n_silent, seen = 0, ActorCall(-1, None, "")
        while True:
            reason = self._why_unreachable()
            if reason is not None:
                raise self._lost(reason)
            try:
                return self._ray.get(due, timeout=self._timeout_s / _N_GLANCES)
            except self._ray.exceptions.GetTimeoutError:
                before, seen = seen, self._look() or seen
                n_silent = n_silent + 1 if seen.call == before.call else 1
                if n_silent >= _N_GLANCES:
                    raise self._lost_for_time(seen) from None
            except self._ray.exceptions.RayError as error:
                raise self._lost(_told(error)) from error

    def _look(self) -> ActorCall | None:
        """Ask the actor what it is doing; None where it does not tell."""
        with suppress(self._ray.exceptions.RayError):
            answer = self._actor.look.options(concurrency_group=_WATCH).remote()
            return ActorCall(*self._ray.get(answer, timeout=min(_LOOK_S, self._timeout_s)))
        return None

    def has_sign(self) -> bool:
        """Tell whether a reply is there, or the actor has ended. Returns at once."""
        if self._due is None or self._why_unreachable() is not None:
            return True
        return bool(self._ray.wait([self._due], timeout=0)[0])

    def lost_for_garbage(self, what: str) -> WorkerLostError:
        """Kill the actor, which sent something else than a reply.

        Args:
            what: a noun phrase that says what it sent.
        """
        return self._lost(f"the actor sent {what}, and was killed")

    def _lost_for_time(self, seen: ActorCall) -> WorkerLostError:
        within = f"within {self._timeout_s:g} s (timeout_s)"
        if seen.call < 0 and seen.trace == "":
            free = self._ray.available_resources()
            return self._lost(
                f"no node of the cluster has started the actor {within}; free are"
                f" {free.get('CPU', 0):g} CPUs of {self._ray.cluster_resources().get('CPU', 0):g}:"
                " add nodes, use fewer actors, or ask for less (actor_options={'num_cpus': 0.5})"
            )
        what = f"the actor did not reply {within} and was killed"
        return self._lost(what, seen.environment, seen.trace)

    def _lost(self, what: str, environment: int | None = None, trace: str = "") -> WorkerLostError:
        self._due = None
        self._kill()
        if environment is None and self._n_envs == 1:
            environment = 0
        return WorkerLostError(what, environment, trace)

    def _why_unreachable(self) -> str | None:
        """Return why no actor of this session can be reached any more; None where it can."""
        if self._is_closed:
            return "the actor is closed"
        if not self._ray.is_initialized():
            return "the actor has ended with Ray: ray.shutdown() was called"
        if _session_of(self._ray) != self._session:
            return "the actor has ended with its cluster: Ray was shut down and initialised anew"
        return None

    def _kill(self) -> None:
        if self._why_unreachable() is None:
            with suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.kill(self._actor)
        self._is_closed = True

    def close(self) -> None:
        """Close the environments and end the actor, in 5 s at most. Called again, do nothing."""
        if self._why_unreachable() is None:
            try:
                self._ray.get(self._actor.close.remote(), timeout=min(self._timeout_s, _CLOSE_S))
            except self._ray.exceptions.GetTimeoutError:
                _logger.warning("an actor did not close within %g s: killed", _CLOSE_S)
            except self._ray.exceptions.RayTaskError:
                _logger.warning("an actor failed to close its environments", exc_info=True)
            except self._ray.exceptions.RayError:  # it has ended
                pass
        self._kill()


def start_actor(ray: Any, options: Mapping[str, Any]) -> Any:
    """Return the handle of a new `EnvActor`, which some node starts when it has room."""
    # Concurrency groups, so that `look` is answered while an environment hangs.
    kind = ray.remote(max_restarts=0, concurrency_groups={_WATCH: 1})(EnvActor)
    return kind.options(**options).remote()


def import_ray() -> Any:
    """Import Ray, which only a RayCage needs.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"RayCage needs {error.name!r}, which is not installed; run: pip install parllel[ray]",
            name=error.name,
        ) from error


def check_initialised(ray: Any) -> None:
    """Refuse to start a cluster in passing: which one it is, is for the program to say."""
    if not ray.is_initialized():
        raise RuntimeError(
            "RayCage: Ray is not initialised; call ray.init() for a cluster of this machine alone,"
            ' or ray.init(address="auto") for the one that this machine is a node of'
        )


def _session_of(ray: Any) -> object:
    """Return what tells this connection to a cluster from a later one."""
    return ray.get_runtime_context().get_job_id(), ray.get_runtime_context().get_node_id()


def _told(error: Exception) -> str:
    """Return Ray's words on how an actor was lost, in one sentence of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"the actor is lost ({type(error).__name__}): {' '.join(lines[:6])}"
