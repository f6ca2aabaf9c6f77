"""WorkerError: a cage raises it when its worker process has failed."""

from __future__ import annotations

from typing import Any

from parllel.cages.values.env_rows import Value


class WorkerError(RuntimeError):
    """A worker raised an exception, ended, or did not reply in time.

    >>> error = WorkerError("the worker was killed by signal 9", environment=1, seed=7, action=0)
    >>> print(error)  # doctest: +ELLIPSIS
    the worker was killed by signal 9
      environment: 1
      seed of its first reset: 7
      last action: 0
      way out: make one in this process and reset it with this seed to see it fail, ...

    Args:
        what: a sentence that says what happened.
        environment: number of the environment that was called last, counted from the cage's
            `first_env` on; None where none was called.
        seed: the seed of its first reset.
        action: its last action, as it is stored; None where there was none, or it is unknown.
        worker_traceback: where the worker raised, hung or crashed, as Python prints it. Empty
            where it could not be written, as in a worker that was killed.
    """

    def __init__(
        self,
        what: str,
        *,
        environment: int | None = None,
        seed: int | None = None,
        action: Value | None = None,
        worker_traceback: str = "",
    ) -> None:
        self.what = what
        self.environment = environment
        self.seed = seed
        self.action = action
        self.worker_traceback = worker_traceback
        super().__init__(what, environment, seed, action, worker_traceback)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self.args

    def __str__(self) -> str:
        text = self.what
        if self.environment is not None:
            text += f"\n  environment: {self.environment}"
            text += f"\n  seed of its first reset: {self.seed}"
            text += f"\n  last action: {'unknown' if self.action is None else self.action}"
            text += "\n  way out: make one in this process and reset it with this seed to see it"
            text += ' fail, or have it made anew by on_worker_error="restart"'
        if self.worker_traceback:
            text += "\nThe worker's traceback:\n" + self.worker_traceback.rstrip()
        return text


def _rebuild(
    what: str,
    environment: int | None,
    seed: int | None,
    action: Value | None,
    worker_traceback: str,
) -> WorkerError:
    return WorkerError(
        what,
        environment=environment,
        seed=seed,
        action=action,
        worker_traceback=worker_traceback,
    )
