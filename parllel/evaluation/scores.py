"""Statistics of scores, float [..., n_runs, n_tasks]: one number for all runs and tasks."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]


def real_numbers(values: ArrayLike, name: str) -> NDArray[Any]:
    """Return values as an array of real numbers, all of which count.

    Raises:
        TypeError: they are no real numbers.
        ValueError: they are lists of different lengths, or some of them are masked.
    """
    if np.ma.is_masked(values):
        raise ValueError(
            f"{name}: got an array with masked numbers, which would count like the others; leave"
            " them out"
        )
    try:
        given = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name}: got lists of different lengths, expected a number for each run and task; give"
            f" all tasks as many runs ({error})"
        ) from error
    if given.dtype.kind not in "biuf":
        raise TypeError(f"{name}: got {given.dtype}, expected real numbers")
    return given


def check_scores(scores: ArrayLike, name: str = "scores") -> Floats:
    """Return a copy of scores as float64 [..., n_runs, n_tasks].

    Raises:
        TypeError: they are no real numbers.
        ValueError: they have less than two axes or are none, lengths differ, or one of them is
            masked or not finite.
    """
    given = real_numbers(scores, name)
    if given.ndim < 2 or not given.size:
        raise ValueError(
            f"{name}: got shape {given.shape}, expected (..., n_runs, n_tasks) with 1 or more of"
            " each; runs of one task are scores[:, np.newaxis]"
        )
    is_finite = np.isfinite(given)
    if not is_finite.all():
        *point, run, task = np.argwhere(~is_finite)[0].tolist()
        place = f" at point {', '.join(map(str, point))}" if point else ""
        raise ValueError(
            f"{name}: that of run {run} in task {task}{place} is NaN or infinite; leave a run out"
            " that failed, and say so, or give it the score of a random policy"
        )
    return given.astype(np.float64)


def _mean(values: Any, axis: int | tuple[int, ...]) -> Floats:  # Any: numbers or booleans
    return np.asarray(np.mean(values, axis=axis))


def mean_score(scores: ArrayLike) -> Floats:
    """Return the mean over all runs and tasks.

    >>> float(mean_score([[0.0, 1.0], [1.0, 4.0]]))
    1.5

    Args:
        scores: float [..., n_runs, n_tasks].

    Returns:
        float64 [...].
    """
    return _mean(_mean(check_scores(scores), -2), -1)


def median_score(scores: ArrayLike) -> Floats:
    """Return the median over tasks of each task's mean.

    >>> float(median_score([[0.0, 1.0, 9.0], [1.0, 4.0, 9.0]]))
    2.5

    Args:
        scores: float [..., n_runs, n_tasks].

    Returns:
        float64 [...].
    """
    return np.asarray(np.median(_mean(check_scores(scores), -2), axis=-1))


def interquartile_mean(scores: ArrayLike) -> Floats:
    """Return the mean of the middle half of all scores, those of all runs and tasks together.

    From n scores, the n // 4 lowest and the n // 4 highest are left out.

    >>> float(interquartile_mean([[0.0, 1.0], [2.0, 90.0]]))
    1.5

    Args:
        scores: float [..., n_runs, n_tasks].

    Returns:
        float64 [...].
    """
    given = check_scores(scores)
    flat = given.reshape(*given.shape[:-2], -1)
    n_cut = flat.shape[-1] // 4
    kept = np.sort(flat, axis=-1)[..., n_cut : flat.shape[-1] - n_cut]
    return _mean(kept, -1)


def optimality_gap(scores: ArrayLike, *, target: float = 1.0) -> Floats:
    """Return by how much scores miss a target on average; those above it miss it by nothing.

    >>> float(optimality_gap([[0.0, 0.5], [1.0, 9.0]]))
    0.375

    Args:
        scores: float [..., n_runs, n_tasks], such as human-normalized ones.
        target: the score to reach.

    Returns:
        float64 [...].

    Raises:
        ValueError: the target is no single finite number.
    """
    if np.ndim(target) or not math.isfinite(target):
        raise ValueError(f"target: got {target!r}, expected a finite number")
    return target - _mean(np.minimum(check_scores(scores), target), (-2, -1))


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> Floats:
    """Return the probability that a run has a higher score than one of another algorithm.

    It is the mean over tasks of the share of pairs of runs; equal scores count one half (the
    statistic of Mann and Whitney).

    >>> float(probability_of_improvement([[1.0], [3.0]], [[0.0], [3.0], [5.0]]))
    0.4166666666666667

    Args:
        scores, others: float [..., n_runs, n_tasks]; n_runs may differ.

    Returns:
        float64 [...].

    Raises:
        ValueError: they have other tasks, or another number of points.
    """
    one, other = check_scores(scores), check_scores(others, "others")
    if one.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"others: got {other.shape[-1]} tasks, expected {one.shape[-1]}, as scores has"
        )
    if one.ndim > 2 and other.ndim > 2 and one.shape[:-2] != other.shape[:-2]:
        raise ValueError(f"others: got the points {other.shape[:-2]}, expected {one.shape[:-2]}")
    mine, its = one[..., :, np.newaxis, :], other[..., np.newaxis, :, :]
    return _mean((mine > its) + 0.5 * (mine == its), (-3, -2, -1))


def performance_profile(
    scores: ArrayLike, thresholds: ArrayLike, *, of_means: bool = False
) -> Floats:
    """Return which share of scores lies above each threshold.

    >>> performance_profile([[0.0, 0.5], [1.0, 9.0]], [0.0, 1.0]).tolist()
    [0.75, 0.25]

    Args:
        scores: float [..., n_runs, n_tasks].
        thresholds: float [n].
        of_means: whether each task counts with the mean of its runs, instead of with each run.

    Returns:
        float64 [..., n].

    Raises:
        TypeError: thresholds are no real numbers.
        ValueError: thresholds have another number of axes than one, or one of them is NaN.
    """
    given = check_scores(scores)
    at = real_numbers(thresholds, "thresholds").astype(np.float64)
    if at.ndim != 1 or np.isnan(at).any():
        raise ValueError(
            f"thresholds: got shape {at.shape} with {np.isnan(at).sum()} NaN, expected one axis of"
            " numbers"
        )
    if of_means:
        given = np.mean(given, axis=-2, keepdims=True)
    return _mean(given[..., np.newaxis] > at, (-3, -2))
