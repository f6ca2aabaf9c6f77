"""RayCage: environments in a Ray actor, anywhere on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from parllel.cages.actors.actor_worker import ActorWorker
from parllel.cages.actors.sent_forms import SentForms
from parllel.cages.cage import Command, Outputs
from parllel.cages.episodes import TrajInfo
from parllel.cages.process.task import packed_task
from parllel.cages.process.worker_cage import TIMEOUT_S, OnWorkerError, WorkerCage
from parllel.cages.seeds import Seed
from parllel.cages.values.any_env import AnyEnv
from parllel.cages.values.env_rows import Value
from parllel.tree import dict_map

# Two cages would have the environments of one of them; an actor that Ray has restarted has none;
# and methods that run at once, or in another order, change the same environments.
_REFUSED_OPTIONS = (
    "get_if_exists",
    "lifetime",
    "max_restarts",
    "max_task_retries",
    "max_concurrency",
    "concurrency_groups",
    "allow_out_of_order_execution",
)


class RayCage(WorkerCage):
    """Step environments in a Ray actor, on this machine or another one of the cluster.

    A command sends the actions, and its reply brings all rows as one array of bytes: by Ray's
    object store, which this process reads without a copy, and copies once to the outputs. Each
    actor's step costs 1 to 2 ms, whatever its environments do (`bench/bench_ray.py`): this is for
    simulators whose steps take milliseconds, and for more cores than one machine has. On one
    machine a `ProcessCage` is faster.

    The program calls `ray.init` before: a cage starts no cluster. The actor ends with the cage, or
    with the program, however that ends. It steps its environments in one thread, which is not the
    main thread of its process.

    >>> import gymnasium as gym
    >>> import ray  # doctest: +SKIP
    >>> ray.init(num_cpus=1)  # doctest: +SKIP
    >>> with RayCage(gym.make, {"id": "CartPole-v1"}, n_envs=2) as cage:  # doctest: +SKIP
    ...     cage.reset_async()
    ...     observation, info = cage.await_step()

    Args:
        make_env: returns one gymnasium environment. It is called in the actor. Functions and
            classes of `__main__`, local ones and lambdas are sent by their definitions; others by
            their names, and the actor imports their modules: they, and parllel, have to be
            installed there, or sent by Ray's `runtime_env`.
        env_kwargs: keyword arguments of `make_env`. Shared memory, files and sockets are refused:
            they belong to one machine.
        make_traj_info: returns the summary of a new episode, e.g. the class `TrajInfo`.
        n_envs: number of environments; their rows are written at once.
        seed: as for `SerialCage`, with the same results.
        timeout_s: longest silence of the actor, which ends with each call of an environment. It
            also has to be started, and make its environments, in this time: on a cluster that
            starts machines on demand, give more.
        on_worker_error: as for `ProcessCage`: "raise", or "restart" for environments that raise and
            actors that are lost, with their process or their node.
        first_env: number of this cage's first environment in the run. Errors and warnings count
            from it.
        actor_options: options of the actor, as Ray's `ActorClass.options` takes them: `num_cpus`
            (1 by default), `num_gpus`, `resources`, `scheduling_strategy`, `runtime_env`. Those by
            which an actor would be shared, outlive its cage, or do two things at once are refused.

    Attributes:
        n_restarts: how many environments were made anew.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        RuntimeError: Ray is not initialised.
        TypeError: an argument can't be sent to the actor, or as for `SerialCage`.
        ValueError: as for `ProcessCage`; or Ray knows no such option, or it is refused.
        WorkerError: the actor ended, or no node had room for it, before environments were made.
        Exception: make_env raised it.
    """

    _worker: ActorWorker

    def __init__(
        self,
        make_env: Callable[..., AnyEnv],
        env_kwargs: Mapping[str, Any] | None = None,
        make_traj_info: Callable[[], TrajInfo] = TrajInfo,
        *,
        n_envs: int = 1,
        seed: Seed = None,
        timeout_s: float = TIMEOUT_S,
        on_worker_error: OnWorkerError = "raise",
        first_env: int = 0,
        actor_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._options = {"num_cpus": 1, **(actor_options or {})}
        _check_options(self._options)
        self._forms = SentForms()
        super().__init__(
            make_env,
            env_kwargs,
            make_traj_info,
            n_envs=n_envs,
            seed=seed,
            timeout_s=timeout_s,
            on_worker_error=on_worker_error,
            first_env=first_env,
        )

    def _start_worker(self) -> None:
        with packed_task(self._calls, self._seeds, restarts=self._restarts, is_near=False) as task:
            self._worker = ActorWorker(task, self._timeout_s, self._options)

    def _prepare(self, kind: str, action: Value | None, outputs: Outputs) -> Command:
        command = super()._prepare(kind, action, outputs)
        return command._replace(packed=self._forms.pack(command, action))

    def _read_inputs(self, command: Command) -> None:
        for part, rows in command.packed.copies_in:
            part[...] = rows

    def _send(self, kind: int, command: Command) -> None:
        self._worker.start(kind, command, self._forms, command.packed.inputs, self._sequence)

    def _write_outputs(self, command: Command) -> None:
        command.packed.write(self._worker.written)

    def _action_of(self, command: Command, environment: int) -> Any:
        if command.action is None:  # the actor has drawn it
            return None
        sent = {id(rows): part for part, rows in command.packed.copies_in}
        # As it was sent: the caller may have changed its own rows since.
        return dict_map(lambda rows: sent[id(rows)][environment].copy(), command.action)


def _check_options(options: Mapping[str, Any]) -> None:
    refused = [name for name in _REFUSED_OPTIONS if name in options]
    if refused:
        raise ValueError(
            f"actor_options: got {', '.join(refused)}, expected options of where the actor runs and"
            " what it needs there: each cage has an actor of its own, which ends with it and does"
            ' one thing at a time; on_worker_error="restart" replaces one that is lost'
        )
