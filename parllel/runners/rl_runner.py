"""RLRunner: the outer loop. Sample, transform, learn, evaluate, log, save."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from parllel.cages import TrajInfo
from parllel.kernels.targets import compile_seconds
from parllel.metrics import MetricsSink
from parllel.samplers import BasicSampler, EvalSampler
from parllel.transforms import Transform
from parllel.tree import ArrayDict
from parllel.tree.not_finite import find_not_finite, refuse_not_finite


class Algorithm(Protocol):
    """An object that learns from batches, as `torch.algos.PPO`.

    Example:
        >>> class MeanReward:  # learns nothing
        ...     def optimize(self, batch):
        ...         return {"mean_reward": float(batch["reward"].to_ndarray().mean())}
        >>> algorithm: Algorithm = MeanReward()
    """

    def optimize(self, batch: ArrayDict) -> Mapping[str, float]:
        """Learn from one batch; return the numbers to log, all of them finite."""


class SavedAgent(Protocol):
    """An agent that can be written to a file, as those of `torch.agents`.

    Example:
        >>> class Fixed:
        ...     def save(self, path):
        ...         Path(path).write_text("it has no parameters")
        >>> agent: SavedAgent = Fixed()
    """

    def save(self, path: str | Path) -> None:
        """Write the agent to a file."""


@dataclass(frozen=True)
class RunSummary:
    """The results of a run.

    Args:
        n_steps: number of environment steps, over all environments.
        mean_return: mean return of the last episodes of training, `window` at most; NaN if no
            episode has ended.
        n_episodes: number of episodes that ended in training.
        sample_s, learn_s: seconds spent in the sampler, and in transforms and algorithm; the
            seconds in which kernels were compiled or loaded are not among them.

    Example:
        >>> RunSummary(1024, mean_return=21.5, n_episodes=40, sample_s=0.5, learn_s=1.5).n_steps
        1024
    """

    n_steps: int
    mean_return: float
    n_episodes: int
    sample_s: float
    learn_s: float


class RLRunner:
    """Train an agent: collect a batch, transform it, learn from it, until `n_steps` are done.

    Args:
        sampler: collects the batches.
        algorithm: learns from the batches.
        metrics: takes all numbers; the caller closes it. `train/...` are means over the last
            episodes of training, `eval/...` means over the episodes of an evaluation, `algo/...`
            the results of the algorithm, `time/...` seconds. `train/n_restarts` counts the
            environments that failed and were made anew, once there is one.
        n_steps: number of environment steps, over all environments; the last batch is collected
            whole.
        transforms: functions that are applied to each batch in turn.
        log_every: number of batches from one log to the next; `algo/...` are those of the last.
        window: number of episodes of training that are averaged.
        eval_sampler: plays episodes after every `eval_every` batches, and at the end.
        eval_every: number of batches from one evaluation to the next.
        agent: the agent to save after each evaluation and at the end, with a `checkpoint`.
        checkpoint: the file to save the agent in, in a folder that exists.

    Raises:
        ValueError: a count is not positive, or checkpoint is given without agent.
        FileNotFoundError: the checkpoint's folder does not exist.

    Example:
        >>> import numpy as np
        >>> from parllel.metrics import Metrics
        >>> from parllel.patterns import build_cages, build_example, build_sample_tree
        >>> from parllel.testing.toy_envs import Clock  # pays 1, 2 and 3 in an episode
        >>> class Zeros:
        ...     def step(self, observation, *, deterministic=False):
        ...         return np.zeros(len(observation), np.int64), {}
        ...     def value(self, observation):
        ...         return np.zeros(len(observation), np.float32)
        >>> class MeanReward:  # learns nothing
        ...     def optimize(self, batch):
        ...         return {"mean_reward": float(batch["reward"].to_ndarray().mean())}
        >>> example = build_example(Clock, storage="local")
        >>> samples = build_sample_tree(example, Zeros(), batch_shape=(4, 2))
        >>> cages = build_cages(Clock, n_envs=2, n_workers="serial")
        >>> sampler = BasicSampler(cages, Zeros(), samples)
        >>> summary = RLRunner(sampler, MeanReward(), Metrics(), n_steps=24).run()
        >>> summary.n_steps, summary.n_episodes, summary.mean_return
        (24, 8, 6.0)
    """

    def __init__(
        self,
        sampler: BasicSampler,
        algorithm: Algorithm,
        metrics: MetricsSink,
        *,
        n_steps: int,
        transforms: Sequence[Transform] = (),
        log_every: int = 1,
        window: int = 100,
        eval_sampler: EvalSampler | None = None,
        eval_every: int = 10,
        agent: SavedAgent | None = None,
        checkpoint: str | Path | None = None,
    ) -> None:
        counts = {"n_steps": n_steps, "log_every": log_every, "window": window}
        for name, count in (counts | {"eval_every": eval_every}).items():
            if count < 1:
                raise ValueError(f"{name}: got {count}, expected 1 or more")
        if checkpoint is not None and agent is None:
            raise ValueError("checkpoint: got a path without an agent to save; give agent=")
        if checkpoint is not None and not Path(checkpoint).absolute().parent.is_dir():
            raise FileNotFoundError(f"checkpoint: {Path(checkpoint).parent} is no folder; make it")
        self._sampler = sampler
        self._algorithm = algorithm
        self._metrics = metrics
        self._transforms = list(transforms)
        self._steps_per_batch = sampler.batch_T * sampler.batch_B
        self._n_batches = -(-n_steps // self._steps_per_batch)
        self._log_every = log_every
        self._eval_sampler = eval_sampler
        self._eval_every = eval_every
        self._agent = agent
        self._checkpoint = checkpoint
        self._recent: deque[TrajInfo] = deque(maxlen=window)
        self._n_episodes = 0
        self._sample_s = 0.0
        self._learn_s = 0.0

    def run(self) -> RunSummary:
        """Train to the end. The metrics are open afterwards, also after an exception.

        Raises:
            ValueError: after the transforms, a reward or an observation in host memory is NaN or
                infinite, or a number that the algorithm returned is. The message names the first
                such leaf of the batch, its row and its environment.
        """
        for number in range(1, self._n_batches + 1):
            batch = self._sample()
            learned = self._learn(batch)
            is_last = number == self._n_batches
            n_steps = number * self._steps_per_batch
            if is_last or number % self._log_every == 0:
                self._log(n_steps, learned)
            if is_last or number % self._eval_every == 0:
                self._evaluate(n_steps)
                self._save()
        return self._summary()

    def _sample(self) -> ArrayDict:
        start = _work_seconds()
        batch, completed = self._sampler.collect_batch()
        self._sample_s += _work_seconds() - start
        self._recent.extend(completed)
        self._n_episodes += len(completed)
        return batch

    def _learn(self, batch: ArrayDict) -> Mapping[str, float]:
        start = _work_seconds()
        for transform in self._transforms:
            batch = transform(batch)
        refuse_not_finite(batch)
        learned = self._algorithm.optimize(batch)
        _check_learned(learned, batch)
        self._learn_s += _work_seconds() - start
        return learned

    def _log(self, n_steps: int, learned: Mapping[str, float]) -> None:
        numbers = {f"train/{name}": mean for name, mean in mean_metrics(self._recent).items()}
        numbers["train/n_episodes"] = float(self._n_episodes)
        if n_restarts := sum(cage.n_restarts for cage in self._sampler.cages):
            numbers["train/n_restarts"] = float(n_restarts)
        numbers |= {f"algo/{name}": number for name, number in learned.items()}
        numbers |= {"time/sample_s": self._sample_s, "time/learn_s": self._learn_s}
        self._metrics.log(n_steps, numbers)

    def _evaluate(self, n_steps: int) -> None:
        if self._eval_sampler is not None:
            means = mean_metrics(self._eval_sampler.collect_episodes())
            self._metrics.log(n_steps, {f"eval/{name}": mean for name, mean in means.items()})

    def _save(self) -> None:
        if self._agent is not None and self._checkpoint is not None:
            self._agent.save(self._checkpoint)

    def _summary(self) -> RunSummary:
        mean_return = mean_metrics(self._recent).get("episode_return", float("nan"))
        return RunSummary(
            n_steps=self._n_batches * self._steps_per_batch,
            mean_return=mean_return,
            n_episodes=self._n_episodes,
            sample_s=self._sample_s,
            learn_s=self._learn_s,
        )


def _check_learned(learned: Mapping[str, float], batch: ArrayDict) -> None:
    """Raise ValueError if a number of the algorithm is NaN or infinite."""
    bad = {name: number for name, number in learned.items() if not math.isfinite(number)}
    if bad:
        found = find_not_finite(batch)
        cause = f"as {found}" if found else "and all of this batch is finite: look at the model"
        raise ValueError(
            f"algorithm: got {bad} of optimize, expected finite numbers, {cause}; one that is not"
            " known yet is left out"
        )


def _work_seconds() -> float:
    """Return the time of a clock that stands still while kernels are compiled or loaded."""
    return time.perf_counter() - compile_seconds()


def mean_metrics(episodes: Iterable[TrajInfo]) -> dict[str, float]:
    """Return the mean of each number over those episodes that have it; nothing for no episodes."""
    numbers: dict[str, list[float]] = {}
    for episode in episodes:
        for name, number in episode.metrics().items():
            numbers.setdefault(name, []).append(number)
    return {name: sum(found) / len(found) for name, found in numbers.items()}
