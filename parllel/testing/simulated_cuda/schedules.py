"""Schedules: when queued work runs, among all the moments that CUDA's rules allow."""

from __future__ import annotations

import random

from parllel.testing.simulated_cuda.engine import Engine, Schedule
from parllel.testing.simulated_cuda.operation import Operation


class Eager:
    """Everything runs at once, as on a GPU that is never busy: no missing wait shows."""

    def queued(self, engine: Engine, operation: Operation) -> None:
        """Run it."""
        engine.run_needed(operation)

    def asked(self, engine: Engine, operation: Operation) -> bool:
        """Tell whether it is done."""
        return operation.is_done

    def awaited(self, engine: Engine, operation: Operation) -> None:
        """Run it, if it is not done."""
        engine.run_needed(operation)


class Lazy:
    """Work runs only when the host waits for it, as on a GPU that is always busy elsewhere."""

    def queued(self, engine: Engine, operation: Operation) -> None:
        """Run nothing."""

    def asked(self, engine: Engine, operation: Operation) -> bool:
        """Tell whether it is done; if not, run one operation that it needs."""
        if not operation.is_done:
            engine.run_first_needed(operation)
            return False
        return True

    def awaited(self, engine: Engine, operation: Operation) -> None:
        """Run it and what it needs, nothing more."""
        engine.run_needed(operation)


class Random:
    """Any legal order, drawn anew for each seed: from nearly lazy to nearly eager.

    Args:
        seed: seed of the order. The same seed and the same calls give the same order.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._pace = self._random.random()  # how likely one more operation runs

    def queued(self, engine: Engine, operation: Operation) -> None:
        """Run a random number of operations of random streams."""
        while self._random.random() < self._pace and self._run_one(engine):
            pass

    def asked(self, engine: Engine, operation: Operation) -> bool:
        """Run some operations, then tell whether it is done."""
        if not operation.is_done:
            self._run_one(engine)
            self.queued(engine, operation)
        return operation.is_done

    def awaited(self, engine: Engine, operation: Operation) -> None:
        """Run it; the work of other streams goes on at the same time, or not."""
        if self._random.random() < 0.5:
            engine.run_needed(operation)
        while not operation.is_done:
            self._run_one(engine)

    def _run_one(self, engine: Engine) -> bool:
        ready = engine.ready()
        if ready:
            engine.run(self._random.choice(ready))
        return bool(ready)


def make_schedule(name: str, seed: int) -> Schedule:
    """Return the schedule of a name: "eager", "lazy" or "random"."""
    if name == "random":
        return Random(seed)
    if name == "eager":
        return Eager()
    if name == "lazy":
        return Lazy()
    raise ValueError(f'schedule: got {name!r}, expected "eager", "lazy" or "random"')
