"""Intervals of statistics of few runs, by a stratified bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from parllel.evaluation.scores import Floats, check_scores


class Interval(NamedTuple):
    """A statistic, and the bounds between which it lies by what these runs tell.

    >>> value, low, high = Interval(*map(np.float64, (0.5, 0.4, 0.7)))
    >>> float(low), float(high)
    (0.4, 0.7)

    Args:
        value: float64 [...], the statistic of the scores themselves.
        low, high: float64 [...].
    """

    value: Floats
    low: Floats
    high: Floats


def bootstrap_interval(
    statistic: Callable[..., ArrayLike],
    *scores: ArrayLike,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    over_tasks: bool = False,
    seed: int | np.random.Generator | None = None,
) -> Interval:
    """Return a statistic of scores with its interval: percentiles of the statistic of resamples.

    A resample draws runs with replacement, for each task apart (a task is a stratum). At each
    point of a learning curve, it has the same runs.

    >>> scores = np.arange(10.0)[:, np.newaxis]  # ten runs of one task
    >>> interval = bootstrap_interval(np.mean, scores, seed=0)
    >>> float(interval.value), bool(interval.low < 4 < 5 < interval.high)
    (4.5, True)

    Args:
        statistic: a function of scores of the shape that is given here, or of several algorithms'
            scores, as `probability_of_improvement`. It returns a number, or an array of always the
            same shape. It may overwrite what it is given.
        scores: float [..., n_runs, n_tasks], for each argument of `statistic`; 2 runs or more.
            Runs are resampled for each argument apart.
        n_resamples: number of resamples. 2,000 are enough to see an interval; for a paper, 50,000.
        confidence: share of resamples whose statistic lies in the interval, in (0, 1).
        over_tasks: whether tasks are drawn with replacement, too: what would be with other tasks
            of this kind. For the scores of one algorithm alone.
        seed: of the resamples; None draws one from the operating system.

    Raises:
        ValueError: an argument is out of its range; a score is not finite, or the statistic of a
            resample; or there is one run only, which tells of no other one.
    """
    given = [check_scores(each, f"scores[{n}]") for n, each in enumerate(scores)]
    _check(given, n_resamples, confidence, over_tasks)
    rng = np.random.default_rng(seed)
    value = np.asarray(statistic(*(each.copy() for each in given)), np.float64)
    found = np.empty((n_resamples, *value.shape))
    for number in range(n_resamples):
        resamples = (_resample(each, over_tasks, rng) for each in given)
        result = np.asarray(statistic(*resamples), np.float64)
        if result.shape != value.shape:
            raise ValueError(
                f"statistic: got shape {result.shape} for a resample, expected {value.shape}, as"
                " for the scores themselves"
            )
        found[number] = result
    if not (np.isfinite(value).all() and np.isfinite(found).all()):
        raise ValueError("statistic: got NaN or infinity, expected finite numbers")
    tail = 50 * (1 - confidence)
    low, high = np.percentile(found, [tail, 100 - tail], axis=0)
    return Interval(value, low, high)


def _check(given: list[Floats], n_resamples: int, confidence: float, over_tasks: bool) -> None:
    if not given:
        raise ValueError("scores: got none, expected those of one algorithm or more")
    if n_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"got n_resamples={n_resamples} and confidence={confidence}, expected 1 or more, and a"
            " number in (0, 1)"
        )
    if over_tasks and len(given) > 1:
        raise ValueError(
            f"over_tasks: got True with the scores of {len(given)} algorithms, expected those of"
            " one: the others would be in other tasks"
        )
    for number, scores in enumerate(given):
        if scores.shape[-2] < 2:
            raise ValueError(
                f"scores[{number}]: got 1 run, expected 2 or more: resamples of one run are all"
                " the same, and their interval has no width"
            )


def _resample(scores: Floats, over_tasks: bool, rng: np.random.Generator) -> Floats:
    n_runs, n_tasks = scores.shape[-2:]
    runs = rng.integers(n_runs, size=(n_runs, n_tasks))
    tasks = rng.integers(n_tasks, size=(1, n_tasks)) if over_tasks else np.arange(n_tasks)
    return scores[..., runs, tasks]
