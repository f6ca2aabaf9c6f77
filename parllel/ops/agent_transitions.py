"""Transitions of several agents: ends of their environments, and what each agent earns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from parllel.cuda import AnyArray
from parllel.kernels import agent_transitions as kernel
from parllel.kernels.agent_transitions import AgentLeaf, AgentsTable
from parllel.ops.launching import launch_items
from parllel.ops.sides import address_of, as_argument, common_side, make_table, to_side


class AgentRows(NamedTuple):
    """Numbers of one quantity for an agent: an array with one for each row, or an axis of agents.

    Args:
        rows: [n] or [n, N], C-contiguous.
        place: the agent's place in the axis; 0 where there is none.
    """

    rows: AnyArray
    place: int = 0

    @property
    def stride(self) -> int:
        """Elements from one row to the next."""
        return int(self.rows.size // len(self.rows)) if len(self.rows) else 1

    @property
    def address(self) -> int:
        """Address of the agent's first number."""
        return address_of(self.rows) + self.place * self.rows.itemsize


class Agent(NamedTuple):
    """An agent's leaves in a ring.

    Args:
        reward: float32.
        terminated, truncated: bool.
        valid: bool; None where the agent is alive in all steps.
    """

    reward: AgentRows
    terminated: AgentRows
    truncated: AgentRows
    valid: AgentRows | None


class AgentsRing:
    """The leaves of a ring of several agents, where kernels find them: a table made once.

    Args:
        agents: the agents' leaves.
        terminated, truncated, valid: bool [n_rows * width], of environments: `join_agent_ends`
            writes them.
        width: number of environments.
        n_steps: steps of a transition.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        *,
        terminated: AnyArray,
        truncated: AnyArray,
        valid: AnyArray,
        width: int,
        n_steps: int,
    ) -> None:
        rows = [each.rows for agent in agents for each in agent if each is not None]
        self.side = common_side("agents", (terminated, *rows))
        self.n_agents = len(agents)
        always = to_side(np.ones(1, np.bool_), self.side)
        self._arrays = (terminated, truncated, valid, always, *rows)  # kept alive
        flags = [address_of(each) for each in (terminated, truncated, valid)]
        n_rows = len(terminated) // width
        numbers = [*AgentsTable(flags[0], flags[1], flags[2], n_rows, width, n_steps, len(agents))]
        for reward, ended, cut, alive in agents:
            numbers += AgentLeaf(
                reward.address,
                ended.address,
                cut.address,
                address_of(always) if alive is None else alive.address,
                reward.stride,
                ended.stride,
                cut.stride,
                0 if alive is None else alive.stride,
            )
        self._table = make_table(numbers, self.side)
        self.argument = as_argument(self._table)


class EarnedRows(NamedTuple):
    """What is written for an agent in each transition of a minibatch.

    Args:
        n_step_return, n_step_discount: float32.
        terminated, truncated, valid: bool. All have one stride.
    """

    n_step_return: AgentRows
    n_step_discount: AgentRows
    terminated: AgentRows
    truncated: AgentRows
    valid: AgentRows


class Earned:
    """Memory that agents' returns are written to, again and again.

    Args:
        agents: for each agent its rows.
        row: int64 [n], the places in the ring of the first steps, which a draw writes.
        n_step_discount: float32 [n], that of environments, which a draw writes.
    """

    def __init__(
        self, agents: Sequence[EarnedRows], *, row: AnyArray, n_step_discount: AnyArray
    ) -> None:
        rows = [each.rows for agent in agents for each in agent]
        self._arrays = (row, n_step_discount, *rows)  # kept alive
        numbers: list[int] = []
        for agent in agents:
            stride = agent.n_step_return.stride
            numbers += [*(each.address for each in agent), stride]  # an `EarnedLeaf`
        self._table = make_table(numbers, common_side("earned", self._arrays))
        self.n_items = len(row)
        self.arguments = as_argument(self._table), as_argument(row), as_argument(n_step_discount)


def join_agent_ends(ring: AgentsRing, begin: int, n_places: int) -> None:
    """Write the flags of environments for some steps (`kernels.agent_transitions.join_ends`).

    On a GPU it is one launch in the caller's current stream.

    Args:
        ring: the ring.
        begin: place of the first step, row * width + column.
        n_places: number of places from there on.
    """
    if not n_places:
        return
    arguments = ring.argument, begin, n_places
    if ring.side == "gpu":
        launch_items("join_agent_ends", n_places, arguments)
    else:
        kernel.JOIN_ON_CPU.compiled(*arguments)


def earn_of_agents(ring: AgentsRing, discount: float, out: Earned) -> None:
    """Write what each agent earns in transitions that were drawn (`agent_transitions.earn`).

    On a GPU it is one launch in the caller's current stream, which can be captured.

    Args:
        ring: the ring.
        discount: for each step.
        out: what is overwritten, behind the draw.
    """
    earned, row, discounts = out.arguments
    arguments = ring.argument, earned, np.float32(discount), row, discounts, out.n_items
    if ring.side == "gpu":
        launch_items("earn_of_agents", out.n_items * ring.n_agents, arguments)
    else:
        kernel.EARN_ON_CPU.compiled(*arguments)
