"""How the pictures of this package look: colors, axes, and files that are whole or not there."""

from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator

COLORS = ("#1f5fa8", "#b45309", "#15803d", "#7c3aed", "#be123c", "#0e7490", "#a16207", "#4b5563")
"""Of lines side by side; the first one is that of a single line."""

INK = "#1f2937"
QUIET = "#6b7280"
"""Of text and lines that are not data."""

_PAD_IN = 0.12
_DPI = 150


def new_figure(width_in: float, height_in: float, title: str = "") -> Figure:
    """Return an empty figure, with a line above all panels where a title is given.

    Args:
      width_in, height_in: size in inches.
      title: the line.
    """
    layout = ConstrainedLayoutEngine(w_pad=_PAD_IN, h_pad=_PAD_IN)
    figure = Figure(figsize=(width_in, height_in), dpi=_DPI, layout=layout)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", color=INK)
    return figure


def make_quiet(axes: Axes, *, grid: Literal["x", "y"] = "y") -> None:
    """Take away all lines but the curves, a light grid and the x axis."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.grid(axis=grid, color=QUIET, alpha=0.2, linewidth=0.8)
    axes.tick_params(colors=QUIET, labelsize=9, left=False)
    axes.margins(x=0.01)


def count_steps(axes: Axes) -> None:
    """Make the x axis one of environment steps: 200k, 1.5M."""
    axes.set_xlabel("environment steps", color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def name_lines(axes: Axes) -> None:
    """Write the names of the lines above the panel: inside, they would cover some."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=3,
        borderaxespad=0.2,
        frameon=False,
        fontsize=9,
        labelcolor=QUIET,
    )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; an older file is replaced at once, when the picture is complete."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        figure.savefig(unfinished, format="png", facecolor="white")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
