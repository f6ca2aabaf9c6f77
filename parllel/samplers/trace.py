"""Trace: where the time of a batch went, in lanes; written for a browser, and as a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Span(NamedTuple):
    """Something that took time. Seconds are those of `time.perf_counter`."""

    lane: str
    name: str
    begin_s: float
    end_s: float


class Trace:
    """Spans in lanes, in the order in which the lanes are given; others come behind them.

    Args:
        lanes: names of lanes.
    """

    def __init__(self, *lanes: str) -> None:
        self._lanes = dict.fromkeys(lanes)
        self.spans: list[Span] = []

    def add(self, lane: str, name: str, begin_s: float, end_s: float) -> None:
        """Keep a span."""
        self._lanes.setdefault(lane)
        self.spans.append(Span(lane, name, begin_s, end_s))

    @contextmanager
    def span(self, lane: str, name: str) -> Iterator[None]:
        """Keep the time inside of the context as a span."""
        begin_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(lane, name, begin_s, time.perf_counter())

    @property
    def lanes(self) -> list[str]:
        """Names of the lanes that have a span."""
        used = {span.lane for span in self.spans}
        return [lane for lane in self._lanes if lane in used]

    def busy_s(self, lane: str) -> float:
        """Return the seconds for which a lane has a span. Those of one lane do not overlap."""
        return sum(span.end_s - span.begin_s for span in self.spans if span.lane == lane)

    def write_json(self, path: str | Path) -> None:
        """Write a file in Chrome's trace format: open it in Perfetto or chrome://tracing.

        Times are microseconds from the first span on.
        """
        origin_s = self._origin_s()
        numbers = {lane: number for number, lane in enumerate(self.lanes)}
        names = [
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": number, "args": {"name": lane}}
            for lane, number in numbers.items()
        ]
        spans = [
            {
                "ph": "X",
                "name": span.name,
                "pid": 0,
                "tid": numbers[span.lane],
                "ts": (span.begin_s - origin_s) * 1e6,
                "dur": (span.end_s - span.begin_s) * 1e6,
            }
            for span in self.spans
        ]
        Path(path).write_text(json.dumps({"traceEvents": [*names, *spans]}))

    def write_png(self, path: str | Path) -> None:
        """Draw the lanes as a Gantt chart, with the share of the time that each is busy.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; parllel[train] brings it.
        """
        from matplotlib.figure import Figure

        lanes, origin_s = self.lanes, self._origin_s()
        whole_s = max((span.end_s for span in self.spans), default=origin_s) - origin_s
        figure = Figure(figsize=(12, 1.2 + 0.5 * len(lanes)), layout="constrained")
        axes = figure.subplots()
        for row, lane in enumerate(lanes):
            bars = [
                ((span.begin_s - origin_s) * 1e3, (span.end_s - span.begin_s) * 1e3)
                for span in self.spans
                if span.lane == lane
            ]
            axes.broken_barh(bars, (row - 0.4, 0.8), facecolor=f"C{row % 10}", linewidth=0)
        shares = [self.busy_s(lane) / whole_s if whole_s else 0.0 for lane in lanes]
        labels = [f"{lane} ({share:.0%})" for lane, share in zip(lanes, shares, strict=True)]
        axes.set_yticks(range(len(lanes)), labels)
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds")
        figure.savefig(path, dpi=120)

    def _origin_s(self) -> float:
        return min((span.begin_s for span in self.spans), default=0.0)
