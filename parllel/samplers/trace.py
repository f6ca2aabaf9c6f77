"""Trace: where the time of a batch went, in lanes; and how the calls of a group are timed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from parllel.cages import Cage, Command
from parllel.samplers.group import Group
from parllel.samplers.transfer import Transfer

AGENT, COPIES, WAITS = "agent", "copies", "waits"
AGENT_WAIT = "for actions"  # a span of WAITS: what the device has to do before actions are there


class Span(NamedTuple):
    """A piece of work and its time, in seconds as `time.perf_counter` counts them."""

    lane: str
    name: str
    begin_s: float
    end_s: float


class Trace:
    """A list of spans, each in one lane: lanes run side by side, as threads in a profiler.

    Args:
        lanes: names of the lanes in the order in which they are shown. A span may name another
            lane, which is then shown behind these.

    Example:
        >>> trace = Trace("agent", "waits")
        >>> trace.add("agent", "step", 1.0, 1.25)
        >>> trace.add("agent", "step", 2.0, 2.5)
        >>> trace.lanes, trace.busy_s("agent")
        (['agent'], 0.75)
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
        """Keep the time that the `with` block takes as a span, after an exception too."""
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
        """Return the sum of the spans of one lane in seconds. They must not overlap."""
        return sum(span.end_s - span.begin_s for span in self.spans if span.lane == lane)

    def shares(self, total_s: float) -> dict[str, float]:
        """Return which shares of a batch's time the host spent on what; their sum is 1.

        What is neither the agent's nor a copy's time belongs to the environments: their steps in
        this process, and waits for those in workers.

        Args:
            total_s: the time of the whole batch in seconds.
        """
        waits_s = sum(s.end_s - s.begin_s for s in self.spans if s.name == AGENT_WAIT)
        policy = min(self.busy_s(AGENT) / total_s, 1.0)
        transfer = min((self.busy_s(COPIES) + waits_s) / total_s, 1.0 - policy)
        return {"policy": policy, "transfer": transfer, "envs": 1.0 - policy - transfer}

    def write_json(self, path: str | Path) -> None:
        """Write a file in Chrome's trace format: open it in Perfetto or chrome://tracing.

        Times are microseconds since the first span began.
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
        """Draw the lanes as a Gantt chart, with the share of the time for which each is busy.

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


@contextmanager
def traced(groups: Sequence[Group]) -> Iterator[Trace]:
    """Time the cages and transfers of groups inside the `with` block.

    The agent belongs to the sampler, which puts a `TracedAgent` in its place.
    """
    lanes = [f"environments {n}" for n in range(sum(len(group.cages) for group in groups))]
    trace = Trace(*lanes, AGENT, COPIES, WAITS)
    former = [(group.cages, group.transfer) for group in groups]
    names = iter(lanes)
    try:
        for group in groups:
            cages: list[Any] = [_TracedCage(cage, next(names), trace) for cage in group.cages]
            transfer: Any = _TracedTransfer(group.transfer, trace)
            group.cages, group.transfer = cages, transfer
        yield trace
    finally:
        for group, (own_cages, own_transfer) in zip(groups, former, strict=True):
            group.cages, group.transfer = own_cages, own_transfer


class TracedAgent:
    """An agent whose steps and values are spans; its other attributes are the agent's own.

    Args:
        agent: the agent that is timed.
        trace: the trace that gets the spans.
    """

    def __init__(self, agent: object, trace: Trace) -> None:
        self._agent: Any = agent  # Any: it may have more attributes than the protocol names
        self._trace = trace

    def step(self, *args: object, **kwargs: object) -> tuple[Any, Any]:
        """Return the agent's step."""
        with self._trace.span(AGENT, "step"):
            result: tuple[Any, Any] = self._agent.step(*args, **kwargs)
        return result

    def value(self, *args: object, **kwargs: object) -> Any:
        """Return the agent's value."""
        with self._trace.span(AGENT, "value"):
            return self._agent.value(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)


class _TracedTransfer:
    """A transfer whose copies and waits are spans; see `Transfer`."""

    def __init__(self, transfer: Transfer, trace: Trace) -> None:
        self._transfer = transfer
        self._trace = trace

    def send_actions(self, t: int, action: object, agent_info: Mapping[str, object]) -> bool:
        with self._trace.span(COPIES, "actions to environments"):
            return self._transfer.send_actions(t, action, agent_info)

    def await_actions(self, t: int) -> None:
        with self._trace.span(WAITS, AGENT_WAIT):
            self._transfer.await_actions(t)

    def take_outputs(self, t: int) -> None:
        with self._trace.span(COPIES, "outputs to the tree"):
            self._transfer.take_outputs(t)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transfer, name)


class _TracedCage:
    """A cage whose environments' steps, and the waits for them, are spans.

    Args:
        cage: the cage that is timed.
        lane: the lane of its environments.
        trace: the trace that gets the spans.
    """

    def __init__(self, cage: Cage, lane: str, trace: Trace) -> None:
        self._cage = cage
        self._lane = lane
        self._trace = trace

    def start_command(self, command: Command) -> None:
        self._cage.start_command(command)

    def await_step(self) -> Any:  # Any: as the cage's
        with self._trace.span(WAITS, f"for {self._lane}"):
            result = self._cage.await_step()
        if self._cage.busy_span is not None:
            self._trace.add(self._lane, "step", *self._cage.busy_span)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cage, name)
