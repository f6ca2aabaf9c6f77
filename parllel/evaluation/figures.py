"""Pictures of intervals: of statistics, of performance profiles, of learning curves over seeds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from parllel.evaluation.intervals import Interval
from parllel.metrics.train_extra import import_from_train_extra

_WIDTH_IN, _HEIGHT_IN = 8.0, 4.2
_ROW_IN, _MARGIN_IN, _PANEL_IN = 0.4, 1.2, 2.6


def draw_intervals(
    path: str | os.PathLike[str],
    intervals: Mapping[str, Mapping[str, Interval]],
    *,
    title: str = "",
) -> None:
    """Write a PNG with a panel for each statistic, and a bar in it for each algorithm.

    Args:
        path: the file; an older one is replaced when the picture is complete.
        intervals: for each statistic, the interval of one number for each algorithm.
        title: a line above the panels.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: there is nothing to draw, or a panel has other algorithms than the first one.
    """
    style = _style("draw_intervals")
    names = list(next(iter(intervals.values()), {}))
    for statistic, its in intervals.items():
        if list(its) != names:
            raise ValueError(f"{statistic}: got the algorithms {list(its)}, expected {names}")
    if not names:
        raise ValueError("intervals: got none, expected one statistic and one algorithm or more")
    size_in = max(_WIDTH_IN, _PANEL_IN * len(intervals)), _MARGIN_IN + _ROW_IN * len(names)
    figure = style.new_figure(*size_in, title)
    panels = figure.subplots(ncols=len(intervals), sharey=True, squeeze=False)[0]
    for axes, (statistic, its) in zip(panels, intervals.items(), strict=True):
        for row, (name, color) in enumerate(zip(names, cycle(style.COLORS), strict=False)):
            value, low, high = map(float, its[name])
            axes.barh(row, high - low, left=low, height=0.6, color=color, alpha=0.35)
            axes.plot([value, value], [row - 0.3, row + 0.3], color=color, linewidth=2.2)
        axes.set_title(statistic, loc="left", fontsize=11, fontweight="bold", color=style.INK)
        style.make_quiet(axes, grid="x")
        axes.use_sticky_edges = False  # or a bar that begins at the left edge touches it
        axes.margins(x=0.08)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    style.save_figure(figure, Path(path))


def draw_profiles(
    path: str | os.PathLike[str],
    thresholds: ArrayLike,
    profiles: Mapping[str, Interval],
    *,
    label: str = "score",
    title: str = "",
) -> None:
    """Write a PNG with a performance profile for each algorithm, and the band of its interval.

    Args:
        path: the file; an older one is replaced when the picture is complete.
        thresholds: float [n].
        profiles: for each algorithm, an interval of float [n], of `performance_profile`.
        label: what the thresholds are.
        title: a line above the panel.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: there is nothing to draw, or a profile has another number of thresholds.
    """
    style = _style("draw_profiles")
    figure = style.new_figure(_WIDTH_IN, _HEIGHT_IN, title)
    axes = figure.subplots()
    _draw_bands(style, axes, np.asarray(thresholds, np.float64), profiles)
    axes.set_xlabel(label, color=style.INK)
    axes.set_ylabel(f"share of runs above the {label}", color=style.INK)
    axes.set_ylim(-0.02, 1.02)
    style.save_figure(figure, Path(path))


def draw_bands(
    path: str | os.PathLike[str],
    steps: ArrayLike,
    curves: Mapping[str, Interval],
    *,
    label: str = "return",
    title: str = "",
) -> None:
    """Write a PNG with a learning curve for each algorithm, and the band of its interval.

    Args:
        path: the file; an older one is replaced when the picture is complete.
        steps: int [n_points], environment steps.
        curves: for each algorithm, an interval of float [n_points]: the `bootstrap_interval` of
            scores [n_points, n_runs, n_tasks].
        label: what the curves show.
        title: a line above the panel.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: there is nothing to draw, or a curve has another number of points.
    """
    style = _style("draw_bands")
    figure = style.new_figure(_WIDTH_IN, _HEIGHT_IN, title)
    axes = figure.subplots()
    _draw_bands(style, axes, np.asarray(steps, np.float64), curves)
    style.count_steps(axes)
    axes.set_ylabel(label, color=style.INK)
    style.save_figure(figure, Path(path))


def _draw_bands(style: Any, axes: Any, x: Any, intervals: Mapping[str, Interval]) -> None:
    if not intervals:
        raise ValueError("got no algorithm to draw, expected one or more")
    for (name, interval), color in zip(intervals.items(), cycle(style.COLORS), strict=False):
        value, low, high = map(np.asarray, interval)
        if value.shape != x.shape or not x.size:
            raise ValueError(f"{name}: got shape {value.shape}, expected {x.shape}, of 1 or more")
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        marker = "o" if x.size == 1 else ""
        axes.plot(x, value, color=color, linewidth=2.2, marker=marker, label=name)
    style.make_quiet(axes)
    style.name_lines(axes)


def _style(function: str) -> Any:
    """Return the module of the pictures' look, which needs matplotlib."""
    return import_from_train_extra("parllel.metrics.figure_style", needed_by=function)
