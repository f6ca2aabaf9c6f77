"""The picture of a bench: a panel for each table, a point for each contestant's median."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from support.timing import Summary

_OURS, _OTHERS, _QUIET = "#1f5fa8", "#6b7280", "#d1d5db"
_N_COLUMNS = 2
_WIDTH_IN, _ROW_IN, _MARGIN_IN = 14.0, 0.3, 0.9
_DPI = 110
_WIDE = (
    20  # where the longest time is more than that many times the shortest, an axis is logarithmic
)


class Panel(NamedTuple):
    """One table: what contestants did, and how long each of them took."""

    heading: str
    summaries: Mapping[str, Summary]


def draw_panels(path: Path, panels: Sequence[Panel], *, title: str, subtitle: str) -> None:
    """Write a PNG. Lines go from the first to the third quartile.

    An axis begins at 0, or is logarithmic where it has to hold very different times.
    """
    rows = [panels[at : at + _N_COLUMNS] for at in range(0, len(panels), _N_COLUMNS)]
    heights = [_MARGIN_IN + _ROW_IN * max(len(each.summaries) for each in row) for row in rows]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights) + _MARGIN_IN), dpi=_DPI, layout="constrained")
    axes = figure.subplots(len(rows), _N_COLUMNS, squeeze=False, height_ratios=heights)
    for at, each in enumerate(axes.flat):
        if at < len(panels):
            _draw_panel(each, panels[at])
        else:
            each.set_axis_off()
    figure.suptitle(f"{title}\n{subtitle}", x=0.01, ha="left", fontsize=11)
    figure.savefig(path, facecolor="white")


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for row, (name, summary) in enumerate(panel.summaries.items()):
        color = _OURS if name.startswith("parllel") else _OTHERS
        quartiles = [summary.first_quartile_us, summary.third_quartile_us]
        axes.plot(quartiles, [row, row], color=color, linewidth=3, alpha=0.35)
        axes.plot(summary.median_us, row, "o", color=color)
        axes.annotate(
            _text(summary.median_us),
            (summary.median_us, row),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=color,
        )
    medians = [summary.median_us for summary in panel.summaries.values()]
    axes.margins(x=0.15)
    if max(medians) > _WIDE * min(medians):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    axes.set_ylim(len(panel.summaries) - 0.4, -0.8)
    axes.set_yticks(range(len(panel.summaries)), list(panel.summaries))
    axes.set_title(panel.heading, loc="left", fontsize=9)
    axes.set_xlabel("us for one call, median and quartiles", fontsize=8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda us, _: f"{us:,g}"))
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", which="both", color=_QUIET, linewidth=0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _text(us: float) -> str:
    return f"{us:,.0f} us" if us >= 100 else f"{us:.3g} us"
