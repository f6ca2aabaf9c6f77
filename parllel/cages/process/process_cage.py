"""ProcessCage: environments in a worker process, which writes their rows where they are wanted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.cages.cage import Command, Outputs
from parllel.cages.episodes import TrajInfo
from parllel.cages.process.command_forms import CommandForms
from parllel.cages.process.limits import limits_explained
from parllel.cages.process.replies import ReplyMemory
from parllel.cages.process.task import packed_task
from parllel.cages.process.worker_cage import TIMEOUT_S, OnWorkerError, WorkerCage
from parllel.cages.process.worker_process import StartMethod, WorkerProcess
from parllel.cages.seeds import Seed
from parllel.cages.values.any_env import AnyEnv
from parllel.cages.values.env_rows import Value
from parllel.cages.values.spaces import most_nbytes
from parllel.storages import Shared
from parllel.tree import dict_map

_SPARE_NBYTES = 65_536  # of the memory for replies, for arrays that are in no space, as of infos


class ProcessCage(WorkerCage):
    """Step environments in a worker process, while this process does other work.

    The worker reads actions and writes results in `shared` and `pinned` memory itself, and in
    `inherited` memory that it inherits: actions there have to stay as they are until `await_step`
    has returned. For actions and outputs in other memory, this process copies from and to shared
    memory, when a command is started and when it is done. A command is one message of some bytes
    over a socket, and nothing is pickled for it. Results without an output, and the final
    observations and summaries of episodes, come as a pickled reply; arrays in it go through shared
    memory, too.

    Workers are forked from a process that is started for that, not from this one. So they inherit
    no thread, no CUDA context and no `__main__`, and a script needs no `if __name__ == "__main__"`.
    They import neither torch nor CuPy, unless make_env does, and libraries get one thread each.
    They end with this process, however it ends. All this needs Linux.

    >>> import gymnasium as gym
    >>> import numpy as np
    >>> from parllel import Array
    >>> reward = Array((2,), np.float32, storage="shared")
    >>> with ProcessCage(gym.make, {"id": "CartPole-v1"}, n_envs=2, seed=0) as cage:
    ...     cage.reset_async()
    ...     observation, info = cage.await_step()
    ...     cage.step_async(np.array([0, 1]), out_reward=reward)
    ...     # here the worker steps the environments, while this process does other work
    ...     _ = cage.await_step()
    >>> reward.to_ndarray()
    array([1., 1.], dtype=float32)

    Args:
        make_env: returns one gymnasium environment. It is called in the worker. Functions and
            classes of `__main__`, local ones and lambdas are sent by their definitions; others by
            their names, and the worker imports their modules.
        env_kwargs: keyword arguments of `make_env`.
        make_traj_info: returns the summary of a new episode, e.g. the class `TrajInfo`.
        n_envs: number of environments; their rows are written at once.
        seed: as for `SerialCage`, with the same results.
        timeout_s: longest silence of a worker, which ends with each call of an environment: the
            times of several do not add up. Time in which this process is stopped does not count.
            Environments have 5 s at most to be closed.
        on_worker_error: the reaction to an environment that raises, and to a worker that ends or
            is silent for `timeout_s`. "raise" raises a WorkerError. With "restart", the environment
            is made anew (all of them, where their worker is lost), with a seed that is derived from
            its own. Its episode ends without a summary: the step is truncated and `invalid`,
            `n_restarts` counts it, a warning is logged, and the command goes on. An environment
            that fails four times in a row, or can't be made anew, raises after all.
        start_method: "forkserver", as described above; or "fork": then the worker is forked from
            this process as it is now, with its modules, its threads' locks and its `inherited`
            memory. That is safe only before threads are started and CUDA is used.
        first_env: number of this cage's first environment in the run. Errors and warnings count
            from it; `build_cages` sets it.
        processor: the processor on which the worker steps, once its environments are made, of those
            that this process may use; any by default. Threads and programs that environments
            start later stay on it, too.

    Attributes:
        n_restarts: how many environments were made anew.

    Raises:
        NotImplementedError: the system is not Linux.
        TypeError: an argument can't be sent to the worker, or as for `SerialCage`.
        ValueError: as for `SerialCage`; or timeout_s or on_worker_error is not valid.
        WorkerError: the worker ended, or was silent for `timeout_s`, before environments were made.
        Exception: make_env raised it.
        OSError: a limit of this process is reached, on open files or on processes.
        MemoryError: there is too little shared memory.
    """

    _worker: WorkerProcess

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
        start_method: StartMethod = "forkserver",
        first_env: int = 0,
        processor: int | None = None,
    ) -> None:
        _check(start_method)
        self._start_method: StartMethod = start_method
        self._processor = processor
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
        nbytes = n_envs * (most_nbytes(self.observation_space) + most_nbytes(self.action_space))
        try:
            with limits_explained():
                self._memory = Shared(2 * nbytes + _SPARE_NBYTES)  # twice: final observations, too
        except BaseException:
            self._worker.close()
            raise
        self._memory.acquire()
        self._reply_memory = ReplyMemory(
            self._memory.array(0, (self._memory.nbytes,), np.dtype(np.uint8))
        )
        self._forms = CommandForms(self._memory, self._worker.inherited)

    def _start_worker(self) -> None:
        # Packed for each worker: handles reach one process, as memory that env_kwargs share does.
        with (
            limits_explained(),
            packed_task(
                self._calls, self._seeds, restarts=self._restarts, start_method=self._start_method
            ) as task,
        ):
            self._worker = WorkerProcess(task, self._timeout_s, self._start_method, self._processor)

    def _prepare(self, kind: str, action: Value | None, outputs: Outputs) -> Command:
        command = super()._prepare(kind, action, outputs)
        return command._replace(packed=self._forms.pack(command, action))

    def _read_inputs(self, command: Command) -> None:
        for stand_in, rows in command.packed.copies_in:
            stand_in[...] = rows

    def _send(self, kind: int, command: Command) -> None:
        self._worker.start(kind, command, self._forms, self._sequence)

    def _write_outputs(self, command: Command) -> None:
        for rows, stand_in in command.packed.copies_out:
            rows[...] = stand_in

    def _action_of(self, command: Command, environment: int) -> Any:
        rows = command.action if command.kind == "step" else command.rows.action
        if rows is None:
            return None
        stand_ins = {id(out): stand_in for out, stand_in in command.packed.copies_out}

        def pick(leaf: NDArray[Any]) -> Any:
            stored: NDArray[Any] = stand_ins.get(id(leaf), leaf)
            return stored[environment].copy()

        return dict_map(pick, rows)

    def close(self) -> None:
        """Close the environments and end the worker, in 5 s at most. Called again, do nothing."""
        super().close()
        self._forms.close()
        self._reply_memory = ReplyMemory(np.zeros(0, np.uint8))  # an array would keep it mapped
        self._memory.release()


def _check(start_method: str) -> None:
    if sys.platform != "linux":
        raise NotImplementedError(
            f"ProcessCage: got {sys.platform}, expected Linux; use a SerialCage (n_workers=0), or a"
            " VectorCage over gymnasium's AsyncVectorEnv"
        )
    if start_method not in ("forkserver", "fork"):
        raise ValueError(f'start_method: got {start_method!r}, expected "forkserver" or "fork"')
