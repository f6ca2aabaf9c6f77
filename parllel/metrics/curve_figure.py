"""Draw learning curves with matplotlib, without pyplot and its global state."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from parllel.metrics.figure_style import (
    COLORS,
    INK,
    count_steps,
    make_quiet,
    name_lines,
    new_figure,
    save_figure,
)
from parllel.metrics.metrics_sink import STEP

_COLOR = COLORS[0]
_WARNING = "#b45309"
_WIDTH_IN, _PANEL_IN, _MARGIN_IN = 8.0, 3.2, 0.8
_FEW = 40  # up to here points are marked: a line alone hides how many there are
_SMOOTH_FRACTION = 20  # a mean over a 20th of the run takes the noise and leaves the shape
_UNITS = {"s": "s", "ms": "ms", "us": "µs", "nbytes": "bytes"}  # endings of keys


def draw_curves(
    path: Path,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    x_key: str = STEP,
    smooth: int | None = None,
    title: str = "",
) -> None:
    """Write a PNG with one panel for each curve, from top to bottom, over one x axis.

    Args:
      path: file to write; an older file is replaced at once, when the picture is complete.
      curves: x [N] and y [N] for each key, N >= 1, in the order of logging.
      x_key: the meaning of x: "step", or a key.
      smooth: number of points in the moving mean; N // 20 by default.
      title: a line above all panels.
    """
    height_in = _MARGIN_IN + _PANEL_IN * len(curves)
    figure = new_figure(_WIDTH_IN, height_in, title)
    panels = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, (key, (x, y)) in zip(panels, curves.items(), strict=True):
        _draw_panel(axes, key, np.asarray(x), np.asarray(y), smooth)
    _label_x(panels[-1], x_key)
    save_figure(figure, path)


def moving_mean(y: ArrayLike, window: int) -> NDArray[np.float64]:
    """Average over a centred window, which is cut off at both ends.

    m[i] = mean(y[j] for j in i - window // 2 ... i + (window - 1) // 2, where y[j] is finite)

    Args:
      y: float [N], N >= 1. NaN and infinities are left out of the means.
      window: 1 <= window <= N.

    Returns:
      float64 [N]. NaN where y is not finite.
    """
    y = np.asarray(y, np.float64)
    is_finite = np.isfinite(y)
    ones = np.ones(window)
    total = np.convolve(np.where(is_finite, y, 0.0), ones, "same")
    count = np.convolve(is_finite, ones, "same")
    return np.where(is_finite, total / np.maximum(count, 1.0), np.nan)


def _draw_panel(
    axes: Axes, key: str, x: NDArray[np.float64], y: NDArray[np.float64], smooth: int | None
) -> None:
    window = min(len(y), smooth or max(1, len(y) // _SMOOTH_FRACTION))
    is_finite = np.isfinite(y)
    _draw_lines(axes, x, np.where(is_finite, y, np.nan), window)
    _mark_not_finite(axes, x[~is_finite])
    axes.set_title(key, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_ylabel(_with_unit(key), color=INK)
    make_quiet(axes)
    axes.ticklabel_format(axis="y", useOffset=False)
    if not is_finite.any():
        axes.set_yticks([])  # without data their numbers would mean nothing
    if axes.get_legend_handles_labels()[0]:
        name_lines(axes)


def _draw_lines(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], window: int) -> None:
    marker = "o" if len(y) <= _FEW else ""
    if window == 1:
        axes.plot(x, y, color=_COLOR, linewidth=1.8, marker=marker, markersize=4)
        return
    axes.plot(
        x, y, color=_COLOR, alpha=0.3, linewidth=0.8, marker=marker, markersize=3, label="each log"
    )
    mean = moving_mean(y, window)
    axes.plot(x, mean, color=_COLOR, linewidth=2.2, label=f"mean of {window:,} logs")


def _mark_not_finite(axes: Axes, x: NDArray[np.float64]) -> None:
    """Put crosses on the x axis where a value has no place on the y axis."""
    if len(x):
        axes.plot(
            x,
            np.zeros(len(x)),
            color=_WARNING,
            linestyle="",
            marker="x",
            markersize=4,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label=f"{len(x):,} NaN or infinite",
        )


def _label_x(axes: Axes, x_key: str) -> None:
    if x_key == STEP:
        count_steps(axes)
    else:
        axes.set_xlabel(_with_unit(x_key), color=INK)


def _with_unit(key: str) -> str:
    """Turn the end of a key into words: train/update_s -> update [s]."""
    *words, last = key.rsplit("/", 1)[-1].split("_")
    if words and last in _UNITS:
        return f"{' '.join(words)} [{_UNITS[last]}]"
    return " ".join([*words, last])
