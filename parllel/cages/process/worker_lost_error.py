"""WorkerLostError: what a worker raises in its cage, which makes a WorkerError of it."""

from __future__ import annotations


class WorkerLostError(Exception):
    """A worker has ended or does not reply, and can't be used any more.

    >>> WorkerLostError("the worker was killed", environment=1, trace="").environment
    1

    Args:
        what: a sentence that says what happened.
        environment: the number of the environment that was called last; None where none was.
        trace: the worker's traceback; empty where it could not be written.
    """

    def __init__(self, what: str, environment: int | None, trace: str) -> None:
        super().__init__(what)
        self.what = what
        self.environment = environment
        self.trace = trace
