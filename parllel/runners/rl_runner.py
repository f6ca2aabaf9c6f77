"""RLRunner: the outer loop. Sample, transform, learn, log, and call hooks."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from parllel.cuda import GpuUsage
from parllel.kernels.targets import compile_seconds
from parllel.metrics import Metrics, MetricsSink
from parllel.ranks import check_same, gather, n_ranks, rank
from parllel.runners.hooks import Hook, check_hooks, is_reached, mean_of_each
from parllel.runners.saved_run import HasState
from parllel.samplers import BasicSampler
from parllel.transforms import Transform
from parllel.tree import ArrayDict
from parllel.tree.not_finite import find_not_finite, refuse_not_finite

# So often a batch is traced, which takes some percent longer, to tell where the time goes.
_TRACE_EVERY_S = 5.0


class Algorithm(Protocol):
    """An object that learns from batches, as `torch.algos.PPO`.

    If it has a method `set_progress`, a runner calls that before each batch with the share of the
    run's steps that are done, in [0, 1]: numbers that change while learning are functions of it.

    Example:
        >>> class MeanReward:  # learns nothing
        ...     def optimize(self, batch):
        ...         return {"mean_reward": float(batch["reward"].to_ndarray().mean())}
        >>> algorithm: Algorithm = MeanReward()
    """

    def optimize(self, batch: ArrayDict) -> Mapping[str, float]:
        """Learn from one batch; return the numbers to log, all of them finite."""


class Resumable(Protocol):
    """The saves of a run, as `Checkpoints`."""

    def load(self, runner: RLRunner) -> bool:
        """Set all parts of the run to the newest save; return whether there is one."""


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

    Several ranks (`parllel.ranks`) run it together, and meet after each batch is collected. Steps
    and episodes are counted over all of them, so all have the same `mean_return` and are done
    together; metrics are logged by rank 0.

    Args:
        sampler: collects the batches.
        algorithm: learns from the batches.
        metrics: takes all numbers; the caller closes it. `train/...` are means over the last
            episodes of training, `algo/...` the results of the algorithm, `time/..._s` seconds,
            `time/..._share` shares of the time since the last log: of environments, policy,
            transfer (these from a batch that is traced every 5 s) and learning; `gpu/...` what NVML
            tells of the current device.
            `train/n_restarts` counts the environments that failed and were made anew, once there
            is one. Hooks log what they have to tell.
        n_steps: number of environment steps, over all environments; the last batch is collected
            whole.
        transforms: functions that are applied to each batch in turn. The state of those that have
            one (`state_dict`, `load_state_dict`) is a part of the runner's; those with a method
            `restart` have it called before a batch for which all environments were reset.
        log_every: number of environment steps from one log to the next; each batch by default.
            `algo/...` are those of the last batch.
        window: number of episodes of training that are averaged.
        learn_after: number of environment steps before learning begins. Batches before are
            collected, and a replay buffer takes them.
        after_batch: functions that are called with the runner after each batch, in this order:
            `Evaluator`, `Checkpoints`, or any of your own. `every` makes them less frequent.
        stop_when: function of the runner; the batch after which it returns True is the last one.
            One rank that ends the run ends it for all.

    Attributes:
        algorithm: the object that learns.
        n_steps: number of environment steps so far.
        steps_per_batch: how many of these a batch has.
        n_episodes: number of episodes that ended in training.
        is_done: whether the last batch was collected and learned from.
        learned: the numbers that the algorithm returned last.
        mean_return: mean return of the last episodes of training, `window` at most; NaN where
            none has ended.

    Raises:
        TypeError: a hook or a transform is no function.
        ValueError: a count is out of range.

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
        learn_after: int = 0,
        after_batch: Sequence[Hook] = (),
        stop_when: Callable[[RLRunner], bool] | None = None,
    ) -> None:
        counts = {"n_steps": n_steps, "log_every": log_every, "window": window}
        for name, count in counts.items():
            if not count >= 1:  # so that NaN is refused, too
                raise ValueError(f"{name}: got {count}, expected 1 or more")
        if not 0 <= learn_after < n_steps:
            raise ValueError(
                f"learn_after: got {learn_after}, expected 0 or more, and less than n_steps ="
                f" {n_steps}"
            )
        check_hooks("after_batch", after_batch)
        check_hooks("transforms", transforms)
        check_hooks("stop_when", [] if stop_when is None else [stop_when])
        self.metrics = metrics if rank() == 0 else Metrics()
        self.steps_per_batch = sampler.batch_T * sampler.batch_B * n_ranks()
        self.n_steps = 0
        self.is_done = False
        self.learned: Mapping[str, float] = {}
        self._sampler = sampler
        self.algorithm = algorithm
        self._transforms = list(transforms)
        self._last_step = n_steps
        self._log_every = log_every
        self._learn_after = learn_after
        self._after_batch = list(after_batch)
        self._stop_when = stop_when
        self._recent: deque[dict[str, float]] = deque(maxlen=window)  # episodes
        self.n_episodes = 0
        self._sample_s = self._learn_s = 0.0
        self._logged = (0.0, 0.0)  # the two at the last log
        self._shares: Mapping[str, float] = {}  # of the time of a batch
        self._traced_at = time.monotonic()  # the first batch may wait for what later ones don't

    def run(self, *, resume: Resumable | None = None) -> RunSummary:
        """Train to the end. The metrics are open afterwards, also after an exception.

        Args:
            resume: the `Checkpoints` of a run that was cut off, which goes on from its newest one;
                where there is none, the run begins. What was logged after that step is
                forgotten.

        Raises:
            ValueError: after the transforms, a reward or an observation in host memory is NaN or
                infinite, or a number that the algorithm returned is. The message names the first
                such leaf of the batch, its row and its environment. Or ranks have other numbers of
                steps or environments, or other transforms.
            RankError: another rank has ended, or did not come in time.
        """
        self._check_ranks()
        if resume is not None:
            resume.load(self)
            self.metrics.rewind(self.n_steps)  # to 0 where the run was cut off before it was saved
        with closing(GpuUsage()) as gpu_usage:
            self._run_batches(gpu_usage)
        return self._summary()

    def _run_batches(self, gpu_usage: GpuUsage) -> None:
        while self.n_steps < self._last_step and not self.is_done:
            self._set_progress()
            batch = self._sample()
            self.n_steps += self.steps_per_batch
            if self.n_steps > self._learn_after:
                self.learned = self._learn(batch)
            self.is_done = self.n_steps >= self._last_step or self._is_stopped()
            if self.is_done or is_reached(self._log_every, self):
                self._log(gpu_usage)
            for hook in self._after_batch:
                hook(self)

    def _check_ranks(self) -> None:
        """Refuse ranks that would wait for each other at different batches."""
        facts: dict[str, object] = {
            "n_steps": self._last_step,
            "learn_after": self._learn_after,
            "log_every": self._log_every,
            "stop_when": "none" if self._stop_when is None else "a function",
            "steps of a batch": self._sampler.batch_T,
            "environments": self._sampler.batch_B,
            "transforms": [type(each).__name__ for each in self._transforms],
        }
        check_same("the beginning of the run", facts)

    def _is_stopped(self) -> bool:
        """Return whether `stop_when` ends the run, here or on another rank."""
        if self._stop_when is None:
            return False
        return any(gather("whether the run ends", bool(self._stop_when(self))))

    @property
    def mean_return(self) -> float:
        """Mean return of the last episodes of training; NaN where none has ended."""
        return mean_of_each(self._recent).get("episode_return", float("nan"))

    def state_dict(self) -> dict[str, Any]:
        """Return what `run` goes on from: counts, the last returns, and states of transforms."""
        return {
            "n_steps": self.n_steps,
            "is_done": self.is_done,
            "last_step": self._last_step,
            "n_episodes": self.n_episodes,
            "recent": list(self._recent),
            "sample_s": self._sample_s,
            "learn_s": self._learn_s,
            "transforms": [
                transform.state_dict() if isinstance(transform, HasState) else None
                for transform in self._transforms
            ],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Have `run` go on from a state that `state_dict` returned.

        Raises:
            KeyError, ValueError: it is that of a runner with other transforms.
        """
        saved = state_dict["transforms"]
        own = [isinstance(transform, HasState) for transform in self._transforms]
        if [state is not None for state in saved] != own:
            raise ValueError(
                f"transforms: got the states of {len(saved)}, expected those of {len(own)} of the"
                " same kinds; make the runner with the transforms of the one that was saved"
            )
        for transform, state in zip(self._transforms, saved, strict=True):
            if state is not None:
                transform.load_state_dict(state)  # type: ignore[attr-defined]  # a HasState
        self.n_steps = state_dict["n_steps"]
        # A run that was done goes on where this one is to have more steps.
        self.is_done = state_dict["is_done"] and state_dict["last_step"] >= self._last_step
        self.n_episodes = state_dict["n_episodes"]
        self._recent.clear()
        self._recent.extend(state_dict["recent"])
        self._sample_s, self._learn_s = state_dict["sample_s"], state_dict["learn_s"]
        self._logged = self._sample_s, self._learn_s

    def _set_progress(self) -> None:
        """Tell an algorithm with schedules how far the run is, before a batch is collected."""
        set_progress = getattr(self.algorithm, "set_progress", None)
        if set_progress is not None:
            set_progress(self.n_steps / self._last_step)

    def _sample(self) -> ArrayDict:
        start = _work_seconds()
        if time.monotonic() - self._traced_at < _TRACE_EVERY_S:
            batch, completed = self._sampler.collect_batch()
        else:
            batch, completed, trace = self._sampler.collect_traced()
            self._shares = trace.shares(_work_seconds() - start)
            self._traced_at = time.monotonic()
        self._sample_s += _work_seconds() - start
        for episodes in gather("episodes of a batch", [traj.metrics() for traj in completed]):
            self._recent.extend(episodes)
            self.n_episodes += len(episodes)
        return batch

    def _learn(self, batch: ArrayDict) -> Mapping[str, float]:
        start = _work_seconds()
        for transform in self._transforms:
            if self._sampler.began_with_reset and (restart := getattr(transform, "restart", None)):
                restart()
            batch = transform(batch)
        refuse_not_finite(batch)
        learned = self.algorithm.optimize(batch)
        _check_learned(learned, batch)
        self._learn_s += _work_seconds() - start
        return learned

    def _log(self, gpu_usage: GpuUsage) -> None:
        numbers = {f"train/{name}": mean for name, mean in mean_of_each(self._recent).items()}
        numbers["train/n_episodes"] = float(self.n_episodes)
        if n_restarts := sum(cage.n_restarts for cage in self._sampler.cages):
            numbers["train/n_restarts"] = float(n_restarts)
        numbers |= {f"algo/{name}": number for name, number in self.learned.items()}
        numbers |= {"time/sample_s": self._sample_s, "time/learn_s": self._learn_s}
        self.metrics.log(self.n_steps, numbers | self._time_shares() | gpu_usage.read())

    def _time_shares(self) -> dict[str, float]:
        """Return the shares of environments, policy, transfer and learning since the last log."""
        sample_s, learn_s = self._sample_s - self._logged[0], self._learn_s - self._logged[1]
        self._logged = self._sample_s, self._learn_s
        total_s = sample_s + learn_s  # 0 where a clock is too coarse to see a batch
        share = sample_s / total_s if total_s > 0 else 0.0
        own = {f"time/{name}_share": share * part for name, part in self._shares.items()}
        return own | {"time/learn_share": 1 - share}

    def _summary(self) -> RunSummary:
        return RunSummary(
            n_steps=self.n_steps,
            mean_return=self.mean_return,
            n_episodes=self.n_episodes,
            sample_s=self._sample_s,
            learn_s=self._learn_s,
        )


def _check_learned(learned: Mapping[str, float], batch: ArrayDict) -> None:
    """Raise ValueError if a number of the algorithm is NaN or infinite."""
    if not isinstance(learned, Mapping):
        raise TypeError(
            f"algorithm: got a {type(learned).__name__} of optimize, expected a dictionary of"
            " numbers; {} where there are none"
        )
    bad = {name: number for name, number in learned.items() if not _is_finite(name, number)}
    if bad:
        found = find_not_finite(batch)
        cause = f"as {found}" if found else "and all of this batch is finite: look at the model"
        raise ValueError(
            f"algorithm: got {bad} of optimize, expected finite numbers, {cause}; one that is not"
            " known yet is left out"
        )


def _is_finite(name: str, number: float) -> bool:
    try:
        return math.isfinite(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"algorithm: got {number!r} of optimize as {name!r}, expected a number: {error}"
        ) from error


def _work_seconds() -> float:
    """Return the time of a clock that stands still while kernels are compiled or loaded."""
    return time.perf_counter() - compile_seconds()
