"""WorkerError: what a cage raises when its worker process has failed."""

from __future__ import annotations

from typing import Any


class WorkerError(RuntimeError):
    """A worker raised, ended, or did not answer in time.

    Args:
        what: what happened, in one sentence.
        environment: number of the environment that was at work, counted from the cage's
            `first_env` on; None if none was.
        seed: that its first `reset` got.
        action: its last action, as it is stored; None where there was none, or nobody knows it.
        worker_traceback: of the worker, as text: where it raised, hung or crashed. Empty where
            there is none (a killed worker can't tell).
    """

    def __init__(
        self,
        what: str,
        *,
        environment: int | None = None,
        seed: int | None = None,
        action: Any = None,
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
    what: str, environment: int | None, seed: int | None, action: Any, worker_traceback: str
) -> WorkerError:
    return WorkerError(
        what,
        environment=environment,
        seed=seed,
        action=action,
        worker_traceback=worker_traceback,
    )
