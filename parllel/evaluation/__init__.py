"""Statements about few runs: statistics of scores, their intervals, and pictures of them.

A score is one number of one run on one task, as the mean return of an evaluation. Scores are
float [n_runs, n_tasks]; those of a learning curve [n_points, n_runs, n_tasks].

>>> import numpy as np
>>> scores = np.array([[0.5, 1.0], [0.7, 1.2], [0.6, 3.0]])  # 3 seeds, 2 tasks
>>> iqm = bootstrap_interval(interquartile_mean, scores, seed=0)
>>> round(float(iqm.value), 3), float(iqm.low) <= float(iqm.value) <= float(iqm.high)
(0.875, True)

Source: Agarwal et al. 2021, arXiv:2108.13264. The numbers are those of its library, rliable 1.2.0.
"""

from parllel.evaluation.atari_scores import ATARI_SCORES, human_normalized
from parllel.evaluation.figures import draw_bands, draw_intervals, draw_profiles
from parllel.evaluation.intervals import Interval, bootstrap_interval
from parllel.evaluation.run_curves import read_curves
from parllel.evaluation.scores import (
    interquartile_mean,
    mean_score,
    median_score,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

__all__ = [
    "ATARI_SCORES",
    "Interval",
    "bootstrap_interval",
    "draw_bands",
    "draw_intervals",
    "draw_profiles",
    "human_normalized",
    "interquartile_mean",
    "mean_score",
    "median_score",
    "optimality_gap",
    "performance_profile",
    "probability_of_improvement",
    "read_curves",
]
