"""Hooks: functions that a runner calls after a batch or after an evaluation; and when it does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from parllel.metrics import MetricsSink
from parllel.ranks import gather
from parllel.runners.generators import unchanged_generators
from parllel.samplers import EvalSampler

_logger = logging.getLogger(__name__)


class Run(Protocol):
    """What a hook sees of a run: an `RLRunner`, after a batch was learned from and logged.

    Attributes:
        n_steps: number of environment steps so far, over all environments.
        steps_per_batch: how many of these the last batch had.
        n_episodes: number of episodes of training that have ended.
        is_done: whether this was the last batch.
        metrics: the sink of the run's numbers.
        mean_return: mean return of the last episodes of training; NaN where there are none.

    >>> def print_steps(run: Run) -> None:  # a hook of one's own
    ...     print(f"{run.n_steps:,} steps: {run.mean_return:.1f}")
    """

    n_steps: int
    steps_per_batch: int
    n_episodes: int
    is_done: bool
    metrics: MetricsSink

    @property
    def mean_return(self) -> float:
        """Return the mean return."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what the run goes on from, for a checkpoint."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set the state that `state_dict` returned."""


Hook: TypeAlias = Callable[[Run], object]
"""A function that is called after each batch."""

EvaluationHook: TypeAlias = Callable[[Run, Mapping[str, float]], object]
"""A function that is called after each evaluation, with its means by name."""


def every(n_steps: int, hook: Hook) -> Hook:
    """Return a hook that calls another one after every so many steps, and at the end of the run.

    It is called after the batch that reaches a multiple of `n_steps`, so a run that is resumed
    calls it at the same steps.

    >>> from types import SimpleNamespace
    >>> hook = every(100, lambda run: print(run.n_steps))
    >>> for n in (64, 128, 192, 256):
    ...     hook(SimpleNamespace(n_steps=n, steps_per_batch=64, is_done=n == 256))
    128
    256

    Args:
        n_steps: number of environment steps, over all environments.
        hook: the function that is called.

    Raises:
        TypeError: the hook is no function.
        ValueError: n_steps is not positive.
    """
    check_hooks("every", [hook])
    if not n_steps >= 1:  # so that NaN is refused, too
        raise ValueError(f"every: got {n_steps} steps, expected 1 or more")

    def call_if_due(run: Run) -> None:
        if run.is_done or is_reached(n_steps, run):
            hook(run)

    return call_if_due


def check_hooks(name: str, hooks: Iterable[object]) -> None:
    """Refuse what is no function when it is given, and not when it is called: after many steps.

    Raises:
        TypeError: one of them is none, or they are not several.
    """
    if not isinstance(hooks, Iterable):
        raise TypeError(f"{name}: got a {type(hooks).__name__}, expected a list of functions")
    for hook in hooks:
        if not callable(hook):
            raise TypeError(f"{name}: got {hook!r}, expected a function")


def is_reached(n_steps: int, run: Run) -> bool:
    """Whether the last batch of a run has reached or passed a multiple of a number of steps."""
    return run.n_steps // n_steps > (run.n_steps - run.steps_per_batch) // n_steps


class Evaluator:
    """A hook that plays episodes, and logs their means as `eval/...`.

    The global generators of Python, NumPy and torch, and the agent's own (its attribute
    `generator`, of any of these), are afterwards as they were: training draws the same numbers
    with evaluations and without them. What the functions in `after` draw is their own matter;
    `record_video` draws nothing.

    Several ranks (`parllel.ranks`) play as many episodes each, with seeds of their own; means are
    over all of them.

    >>> from parllel.cages import SerialCage
    >>> from parllel.testing.toy_envs import Clock  # pays 1, 2 and 3 in an episode
    >>> from types import SimpleNamespace
    >>> from parllel.metrics import Metrics
    >>> class Zeros:
    ...     def step(self, observation, *, deterministic=False):
    ...         return [0] * len(observation), {}
    >>> sampler = EvalSampler([SerialCage(Clock)], Zeros(), n_episodes=2, storage="local")
    >>> evaluate = Evaluator(sampler, after=[lambda run, means: print(means)])
    >>> evaluate(SimpleNamespace(n_steps=64, metrics=Metrics()))
    {'episode_length': 3.0, 'episode_return': 6.0}

    Means are over the episodes that were finished within the sampler's `max_steps`. A warning is
    logged once where some were not: a mean over the short ones may tell the opposite of all.

    Args:
        eval_sampler: plays the episodes. Give it a seed where the run is to be resumed bit for bit.
        after: functions that are called after each evaluation, with the run and the means, of which
            there are none where no episode was finished.
    """

    def __init__(self, eval_sampler: EvalSampler, *, after: Sequence[EvaluationHook] = ()) -> None:
        self._sampler = eval_sampler
        check_hooks("after", after)
        self._after = list(after)
        self._has_warned = False

    def __call__(self, run: Run) -> None:
        """Play the episodes of an evaluation."""
        with unchanged_generators(self._sampler.agent):
            episodes = self._sampler.collect_episodes()
        self._warn_of_unfinished(len(episodes))
        own = [episode.metrics() for episode in episodes]
        of_ranks = gather("episodes of an evaluation", own)
        means = mean_of_each(row for rows in of_ranks for row in rows)
        run.metrics.log(run.n_steps, {f"eval/{name}": mean for name, mean in means.items()})
        for hook in self._after:
            hook(run, means)

    def _warn_of_unfinished(self, n_finished: int) -> None:
        """Log once that episodes were given up, of which nothing is told."""
        if n_finished < self._sampler.n_episodes and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "evaluation: %d of %d episodes were finished within max_steps = %d, and only these"
                " count; give EvalSampler more steps, or the environments a limit of their own"
                " (gymnasium.wrappers.TimeLimit)",
                n_finished,
                self._sampler.n_episodes,
                self._sampler.max_steps,
            )


def mean_of_each(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each number over those rows that have it; nothing for no rows.

    >>> mean_of_each([{"a": 1.0, "b": 5.0}, {"a": 2.0}])
    {'a': 1.5, 'b': 5.0}
    """
    numbers: dict[str, list[float]] = {}
    for row in rows:
        for name, number in row.items():
            numbers.setdefault(name, []).append(number)
    return {name: sum(found) / len(found) for name, found in numbers.items()}
