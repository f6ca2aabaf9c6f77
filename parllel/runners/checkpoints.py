"""Checkpoints: a hook that saves a run, so that it can be resumed bit for bit."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parllel.ranks import gather
from parllel.runners.hooks import Run
from parllel.runners.saved_run import (
    HasState,
    check_parts,
    load_run_of_ranks,
    save_run_of_ranks,
)
from parllel.samplers import BasicSampler, Sampler

_logger = logging.getLogger(__name__)


class Checkpoints:
    """Save a run whenever the runner calls this, and resume it from the newest save.

    By default, environments are not saved. Instead each checkpoint has all of them reset with new
    seeds, which are derived from the run's seed and the number of steps, in the run that goes on
    too. So a run that was killed and is resumed makes the same batches and ends with the same
    weights, bit for bit, for all environments of which a seeded reset leaves nothing of what was
    before. An episode that the reset cuts off counts as truncated, and is not reported: save much
    less often than an episode takes, or nothing is learned of what comes late in it.

    Give it as the last hook: what hooks behind it do is not a part of the checkpoint, and is lost
    where the run is killed meanwhile.

    Several ranks (`parllel.ranks`) save together, each its own parts in a folder of its own, as
    `RunFolder` names them. The same number of ranks goes on with them; another one is refused.

    With `saves_envs`, the states of the environments are a part of each checkpoint, and episodes go
    on. `Cage.check_state` tells which environments have states. Then a resumed run makes the same
    batches, bit for bit, for all environments whose states are all that their steps depend on.
    Environments read their states themselves, ALE in C++: load such a checkpoint only from people
    whose environments you would run.

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
        sampler: its environments are reset after each save, or saved.
        seed: the seed of the run.
        parts: all that has state, by names of your choice: agent, algorithm, a replay buffer,
            running moments, generators that are not part of these (`save_run`). The runner is
            added as `runner`; with `saves_envs`, the sampler as `sampler`, and where no replay
            buffer saves its sample tree, the tree as `samples`.
        saves_envs: whether environments are saved, and not reset. Cages may be others in the
            resumed run.

    Raises:
        NotImplementedError: with `saves_envs`, a cage can't save environments (`VectorCage`).
        TypeError: a part can't be saved, or has the name of one that is added; or, with
            `saves_envs`, an environment can't save its state.
        ValueError: the sampler's agent or replay buffer is not among the parts, or the seed is
            negative.
    """

    def __init__(
        self,
        folder: str | Path,
        sampler: Sampler,
        *,
        seed: int,
        saves_envs: bool = False,
        **parts: Any,  # as for save_run
    ) -> None:
        np.random.SeedSequence([seed, 0])  # raises where the seed is none
        if "runner" in parts:
            raise TypeError("runner: it is added by itself; rename the part of that name")
        check_parts(parts)
        _check_complete(sampler, parts)
        self._n_episodes: int | None = None  # at the last save
        self._has_warned = False
        self._folder = Path(folder)
        _check_folders(self._folder)
        self._sampler = sampler
        self._seed = seed
        self._saves_envs = saves_envs
        self._parts = _with_envs(sampler, parts) if saves_envs else parts
        # By these, resets go on with the numbers of the run that was cut off.
        self._settings = {} if saves_envs else {"seed": int(seed), "n_envs": sampler.batch_B}

    def __call__(self, runner: Run) -> None:
        """Save the run; where environments are not saved, the next batch begins with their reset.

        Raises:
            OSError: the disk is full, or the like; the last checkpoint is what it was.
            ValueError: the run's algorithm has a state, and is not among the parts.
        """
        self._check_algorithm(runner)
        save_run_of_ranks(self._folder, {"runner": runner, **self._parts}, self._settings)
        if not self._saves_envs:
            self._warn_of_no_end(runner)
            self._restart(runner)

    def load(self, runner: Run) -> bool:
        """Set all parts to the newest checkpoint; return whether there is one.

        Raises:
            KeyError, ValueError: as for `load_run`; or another number of ranks has saved it.
                ValueError also as for a save, and where environments are not saved and the seed or
                their number was another one.
            RankError: another rank has ended, or did not come in time.
        """
        self._check_algorithm(runner)
        parts = {"runner": runner, **self._parts}
        is_loaded = load_run_of_ranks(self._folder, parts, self._settings)
        if is_loaded and not self._saves_envs:
            self._restart(runner)
        return is_loaded

    def _check_algorithm(self, runner: Run) -> None:
        algorithm = getattr(runner, "algorithm", None)
        if isinstance(algorithm, HasState):
            message = "the run's algorithm is missing, so that its optimizer would begin anew; add"
            _check_is_among(self._parts, algorithm, f"{message} it, as algorithm=")

    def _warn_of_no_end(self, runner: Run) -> None:
        """Log once that resets cut all episodes off, where none ended between two saves."""
        if self._n_episodes == runner.n_episodes and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "checkpoints: no episode ended since the one before, and each resets all"
                " environments: what comes late in an episode is never seen; save less often, or"
                " save environments (saves_envs)"
            )
        self._n_episodes = runner.n_episodes

    def _restart(self, runner: Run) -> None:
        self._sampler.reseed(np.random.SeedSequence([self._seed, runner.n_steps]))


def _check_folders(folder: Path) -> None:
    """Refuse a folder that another rank has, too."""
    found = gather("folders of checkpoints", (platform.node(), str(folder.resolve())))
    if len(set(found)) < len(found):
        raise ValueError(
            f"folder: got {found} by ranks, expected another one for each, as RunFolder names them;"
            ' add f"rank-{parllel.ranks.rank()}"'
        )


def _check_complete(sampler: Sampler, parts: Mapping[str, Any]) -> None:
    """Refuse parts that lack what the sampler's next batches depend on."""
    agent, replay = sampler.agent, getattr(sampler, "replay", None)
    if isinstance(agent, HasState):
        _check_is_among(parts, agent, "the sampler's agent is missing; add it, as agent=")
    if replay is not None:
        _check_is_among(parts, replay, "the sampler's replay is missing; add it, as replay=")


def _check_is_among(parts: Mapping[str, Any], part: object, message: str) -> None:
    if not any(part is each for each in parts.values()):
        raise ValueError(f"parts: {message}")


def _with_envs(sampler: Sampler, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts, with those that environments go on from behind them."""
    if not isinstance(sampler, BasicSampler):
        raise TypeError(
            f"sampler: got a {type(sampler).__name__}, whose episodes do not go on from batch to"
            " batch, expected a BasicSampler"
        )
    sampler.check_state()
    own: dict[str, Any] = {"samples": sampler.samples, "sampler": sampler}
    replay = sampler.replay
    if replay is not None:
        del own["samples"]  # the replay buffer saves it
    taken = sorted(own.keys() & parts.keys())
    if taken:
        raise TypeError(f"parts: {taken} are added with saves_envs; leave them out, or rename them")
    return {**parts, **own}  # in this order they are loaded: the sampler reads the tree
