"""Checkpoints: a hook that saves a run, so that it can be resumed bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from parllel.runners.hooks import Run
from parllel.runners.saved_run import load_run, save_run
from parllel.samplers import Sampler


class Checkpoints:
    """Save a run whenever the runner calls this, and resume it from the newest save.

    Environments are not saved. Instead each checkpoint has all of them reset with new seeds, which
    are derived from the run's seed and the number of steps, in the run that goes on too. So a run
    that was killed and is resumed makes the same batches and ends with the same weights, bit for
    bit, for all environments of which a seeded reset leaves nothing of what was before. What is
    to be learned from an episode that the reset cuts off stays as it is: it counts as truncated.

    >>> import tempfile
    >>> from parllel.runners import RLRunner
    >>> from parllel.patterns import build_cages, build_example, build_sample_tree
    >>> from parllel.metrics import Metrics
    >>> from parllel.samplers import BasicSampler
    >>> from parllel.testing.toy_envs import Clock
    >>> class Zeros:
    ...     def step(self, observation, *, deterministic=False):
    ...         return np.zeros(len(observation), np.int64), {}
    >>> class Counter:  # learns how many batches there were
    ...     n_batches = 0
    ...     def optimize(self, batch):
    ...         self.n_batches += 1
    ...         return {}
    ...     def state_dict(self):
    ...         return {"n_batches": self.n_batches}
    ...     def load_state_dict(self, state):
    ...         self.n_batches = state["n_batches"]
    >>> samples = build_sample_tree(build_example(Clock), Zeros(), batch_shape=(4, 2))
    >>> sampler = BasicSampler(build_cages(Clock, 2, n_workers=0), Zeros(), samples)
    >>> folder = tempfile.mkdtemp()
    >>> for n_steps in (16, 32):
    ...     counter = Counter()
    ...     checkpoints = Checkpoints(folder, sampler, seed=0, algorithm=counter)
    ...     runner = RLRunner(
    ...         sampler, counter, Metrics(), n_steps=n_steps, after_batch=[checkpoints]
    ...     )
    ...     _ = runner.run(resume=checkpoints)
    >>> counter.n_batches  # two of the first run, and two more
    4

    Args:
        folder: the folder of the checkpoints; only the newest one stays.
        sampler: its environments are reset after each save.
        seed: the seed of the run.
        parts: all that has state, by names of your choice: agent, algorithm, a replay buffer,
            running moments, generators that are not part of these (`save_run`). The runner is
            added as `runner`.

    Raises:
        TypeError: a part can't be saved.
    """

    def __init__(
        self,
        folder: str | Path,
        sampler: Sampler,
        *,
        seed: int,
        **parts: Any,  # as for save_run
    ) -> None:
        self._folder = Path(folder)
        self._sampler = sampler
        self._seed = seed
        self._parts = parts

    def __call__(self, runner: Run) -> None:
        """Save the run; the next batch begins with a reset of all environments.

        Raises:
            OSError: the disk is full, or the like; the last checkpoint is what it was.
        """
        save_run(self._folder, runner=runner, **self._parts)
        self._restart(runner)

    def load(self, runner: Run) -> bool:
        """Set all parts to the newest checkpoint; return whether there is one.

        Raises:
            KeyError, ValueError: as for `load_run`.
        """
        is_loaded = load_run(self._folder, runner=runner, **self._parts)
        if is_loaded:
            self._restart(runner)
        return is_loaded

    def _restart(self, runner: Run) -> None:
        self._sampler.reseed(np.random.SeedSequence([self._seed, runner.n_steps]))
