"""How a group's calls are timed: stand-ins for agent, transfer and cages while a trace is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from parllel.cages import Cage, Command
from parllel.samplers.group import Group
from parllel.samplers.trace import Trace
from parllel.samplers.transfer import Transfer
from parllel.tree import ArrayDict

AGENT, COPIES, WAITS = "agent", "copies", "waits"


class TracedAgent:
    """An agent whose calls are spans in a lane of its own; all else is the agent's.

    Args:
        agent: whom to ask.
        trace: of the spans.
    """

    def __init__(self, agent: Any, trace: Trace) -> None:  # Any: with attributes of its own
        self._agent = agent
        self._trace = trace

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        """Ask the agent."""
        with self._trace.span(AGENT, "step"):
            result: tuple[Any, Any] = self._agent.step(observation, deterministic=deterministic)
        return result

    def value(self, *args: Any, **kwargs: Any) -> Any:
        """Ask the agent."""
        with self._trace.span(AGENT, "value"):
            return self._agent.value(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)


class TracedTransfer:
    """A transfer whose copies and waits are spans; see `Transfer`."""

    def __init__(self, transfer: Transfer, trace: Trace) -> None:
        self._transfer = transfer
        self._trace = trace

    @property
    def host_rows(self) -> list[ArrayDict]:
        """The transfer's own."""
        return self._transfer.host_rows

    def send_actions(self, t: int) -> None:
        """Trace the queueing of the copy."""
        with self._trace.span(COPIES, "actions to environments"):
            self._transfer.send_actions(t)

    def await_actions(self, t: int) -> None:
        """Trace the wait for the copy."""
        with self._trace.span(WAITS, "for actions"):
            self._transfer.await_actions(t)

    def take_outputs(self, t: int) -> None:
        """Trace the queueing of the copy to the tree."""
        with self._trace.span(COPIES, "outputs to the tree"):
            self._transfer.take_outputs(t)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transfer, name)


class TracedCage:
    """A cage whose environments' steps, and the waits for them, are spans.

    Args:
        cage: to be timed.
        lane: of its environments.
        trace: of the spans.
    """

    def __init__(self, cage: Cage, lane: str, trace: Trace) -> None:
        self._cage = cage
        self._lane = lane
        self._trace = trace

    def start_command(self, command: Command) -> None:
        """Start the command."""
        self._cage.start_command(command)

    def await_step(self) -> Any:  # Any: as the cage's
        """Trace the wait, and what the environments did when."""
        with self._trace.span(WAITS, f"for {self._lane}"):
            result = self._cage.await_step()
        if self._cage.busy_span is not None:
            self._trace.add(self._lane, "step", *self._cage.busy_span)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cage, name)


@contextmanager
def traced(groups: Sequence[Group]) -> Iterator[Trace]:
    """Time what groups do inside of the context; the agent has to be timed by its caller."""
    lanes = [f"environments {n}" for n in range(sum(len(group.cages) for group in groups))]
    trace = Trace(*lanes, AGENT, COPIES, WAITS)
    former = [(group.cages, group.transfer) for group in groups]
    names = iter(lanes)
    try:
        for group in groups:
            cages: list[Any] = [TracedCage(cage, next(names), trace) for cage in group.cages]
            transfer: Any = TracedTransfer(group.transfer, trace)
            group.cages, group.transfer = cages, transfer
        yield trace
    finally:
        for group, (own_cages, own_transfer) in zip(groups, former, strict=True):
            group.cages, group.transfer = own_cages, own_transfer
