"""Transitions of several agents: where their environments' episodes end, and what each one earns.

Draws know environments only (`transitions`): their episodes end in a step in which all agents
have ended. `join_ends` finds those steps, and `earn` what each agent has of a step that was drawn.
"""

from typing import NamedTuple

import numpy as np

from parllel.kernels.addresses import (
    load_byte,
    load_float32,
    load_int64,
    store_float32,
    store_uint8,
)
from parllel.kernels.targets import CpuKernel, DeviceEntry, cuda


class AgentsTable(NamedTuple):
    """A ring of several agents: in memory one int64 after the other, the agents' leaves behind it.

    The first three are flags of environments, uint8 [n_rows, width], which `join_ends` writes.
    """

    terminated: int
    truncated: int
    valid: int
    n_rows: int
    width: int
    n_steps: int  # of a transition
    n_agents: int


class AgentLeaf(NamedTuple):
    """Addresses of an agent's numbers in the ring, and how far apart neighbouring steps lie.

    Strides count elements: the number of agents in an agent axis, else 1; 0 for one flag that is
    read again and again.
    """

    reward: int  # float32
    terminated: int  # uint8, as all flags
    truncated: int
    valid: int
    reward_stride: int
    terminated_stride: int
    truncated_stride: int
    valid_stride: int


class EarnedLeaf(NamedTuple):
    """Addresses of what is written for an agent in each transition, and their stride."""

    n_step_return: int  # float32
    n_step_discount: int  # float32
    terminated: int  # uint8
    truncated: int  # uint8
    valid: int  # uint8
    stride: int


TABLE_NUMBERS = len(AgentsTable._fields)
LEAF_NUMBERS = len(AgentLeaf._fields)
EARNED_NUMBERS = len(EarnedLeaf._fields)
_LEAVES, _LEAF_NBYTES, _EARNED_NBYTES = TABLE_NUMBERS * 8, LEAF_NUMBERS * 8, EARNED_NUMBERS * 8


def read_agents_table(table: int) -> AgentsTable:
    """Return the table at an address."""
    return AgentsTable(
        load_int64(table),
        load_int64(table + 8),
        load_int64(table + 16),
        load_int64(table + 24),
        load_int64(table + 32),
        load_int64(table + 40),
        load_int64(table + 48),
    )


def read_agent_leaf(table: int, agent: int) -> AgentLeaf:
    """Return the leaf of an agent in the table at an address."""
    leaf = table + _LEAVES + agent * _LEAF_NBYTES
    return AgentLeaf(
        load_int64(leaf),
        load_int64(leaf + 8),
        load_int64(leaf + 16),
        load_int64(leaf + 24),
        load_int64(leaf + 32),
        load_int64(leaf + 40),
        load_int64(leaf + 48),
        load_int64(leaf + 56),
    )


def read_earned_leaf(table: int, agent: int) -> EarnedLeaf:
    """Return where an agent's results go, in the table at an address."""
    leaf = table + agent * _EARNED_NBYTES
    return EarnedLeaf(
        load_int64(leaf),
        load_int64(leaf + 8),
        load_int64(leaf + 16),
        load_int64(leaf + 24),
        load_int64(leaf + 32),
        load_int64(leaf + 40),
    )


def join_ends(agents: int, place: int) -> None:
    """Write the flags of a step of an environment, of those of its agents.

    Its episode ends where each agent has ended or is dead. It has terminated there if each agent
    has that was alive in the step: then no final observation is needed. A step is valid in which
    any agent is alive.
    """
    table = read_agents_table(agents)
    is_over, all_terminated, is_valid = True, True, False
    for agent in range(table.n_agents):
        leaf = read_agent_leaf(agents, agent)
        terminated = load_byte(leaf.terminated + place * leaf.terminated_stride) != 0
        truncated = load_byte(leaf.truncated + place * leaf.truncated_stride) != 0
        alive = load_byte(leaf.valid + place * leaf.valid_stride) != 0
        is_over = is_over and (terminated or truncated)
        all_terminated = all_terminated and (terminated or not alive)
        is_valid = is_valid or alive
    has_terminated = is_over and all_terminated and is_valid
    store_uint8(table.terminated + place, 1 if has_terminated else 0)
    store_uint8(table.truncated + place, 1 if is_over and not has_terminated else 0)
    store_uint8(table.valid + place, 1 if is_valid else 0)


def earn(
    agents: int,
    earned: int,
    discount: np.float32,
    place: int,
    is_found: bool,
    agent: int,
    item: int,
) -> None:
    """Write what an agent earns in a transition that begins with a step.

    Its rewards are summed up from the step on, until the agent ends, the environment's episode
    does, or the transition has all its steps. It is not valid where the agent is not alive in the
    first step; or where it was truncated before the last one, as the next observation is then not
    the one that the agent's value goes on with.

    Args:
        agents: address of the ring's table.
        earned: address of the table of results.
        discount: for each step.
        place: index of the transition's first step in the ring, row * width + column.
        is_found: whether the step can be sampled; else NaN is written.
        agent: the agent.
        item: index of the transition in the minibatch.
    """
    table, leaf = read_agents_table(agents), read_agent_leaf(agents, agent)
    row, column = place // table.width, place % table.width
    total, factor = np.float32(0), np.float32(1)
    alive = load_byte(leaf.valid + place * leaf.valid_stride) != 0
    has_terminated, was_truncated, is_last, goes_on = False, False, False, True
    is_ended, step = not alive, 0
    while step < table.n_steps and goes_on:
        at = row * table.width + column
        is_alive = load_byte(leaf.valid + at * leaf.valid_stride) != 0
        if not is_ended and not is_alive:  # it has gone without an end
            was_truncated, is_ended, is_last = True, True, False
        elif not is_ended:
            total += factor * load_float32(leaf.reward + at * leaf.reward_stride * 4)
            factor *= discount
            has_terminated = load_byte(leaf.terminated + at * leaf.terminated_stride) != 0
            was_truncated = load_byte(leaf.truncated + at * leaf.truncated_stride) != 0
            is_ended, is_last = has_terminated or was_truncated, True
        else:
            is_last = False
        goes_on = load_byte(table.terminated + at) == 0 and load_byte(table.truncated + at) == 0
        row = row + 1 if row + 1 < table.n_rows else 0
        step += 1
    valid = alive and is_found and (is_last or has_terminated)
    if not valid:
        total, factor = np.float32(0), np.float32(0)
    if not is_found:
        total, factor = np.float32(np.nan), np.float32(np.nan)
    elif has_terminated:
        factor = np.float32(0)
    out = read_earned_leaf(earned, agent)
    to = item * out.stride
    store_float32(out.n_step_return + to * 4, total)
    store_float32(out.n_step_discount + to * 4, factor)
    store_uint8(out.terminated + to, 1 if has_terminated and alive else 0)
    store_uint8(out.truncated + to, 1 if was_truncated or not alive else 0)
    store_uint8(out.valid + to, 1 if valid else 0)


def earn_item(
    agents: int, earned: int, discount: np.float32, rows: int, discounts: int, n: int, number: int
) -> None:
    """Write what one agent earns in one transition; neighbours are agents of one transition.

    Args:
        agents, earned, discount: as for `earn`.
        rows: address of the places of the first steps, int64 [n_items].
        discounts: address of the environments' n-step discounts, float32; NaN where nothing was
            found.
        n: number of agents.
        number: index among all agents of all transitions.
    """
    item, agent = number // n, number % n
    found = load_float32(discounts + item * 4)
    earn(agents, earned, discount, load_int64(rows + item * 8), found == found, agent, item)


def join_on_grid(agents: int, begin: int, n_places: int) -> None:
    """Write the flags of some steps of environments: one thread for each."""
    item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_places:
        join_ends(agents, begin + item)
        item += cuda.gridDim.x * cuda.blockDim.x


def join_in_turn(agents: int, begin: int, n_places: int) -> None:
    """Write the flags of some steps of environments on a CPU."""
    for item in range(n_places):
        join_ends(agents, begin + item)


def earn_on_grid(
    agents: int, earned: int, discount: np.float32, rows: int, discounts: int, n_items: int
) -> None:
    """Write what all agents earn: one thread for each agent of each transition."""
    n = read_agents_table(agents).n_agents
    number = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while number < n_items * n:
        earn_item(agents, earned, discount, rows, discounts, n, number)
        number += cuda.gridDim.x * cuda.blockDim.x


def earn_in_turn(
    agents: int, earned: int, discount: np.float32, rows: int, discounts: int, n_items: int
) -> None:
    """Write what all agents earn on a CPU."""
    n = read_agents_table(agents).n_agents
    for number in range(n_items * n):
        earn_item(agents, earned, discount, rows, discounts, n, number)


_JOIN_PARTS = (read_agents_table, read_agent_leaf, join_ends)
_EARN_PARTS = (read_agents_table, read_agent_leaf, read_earned_leaf, earn, earn_item)
_JOIN, _EARN = "void(int64, int64, int64)", "void(int64, int64, float32, int64, int64, int64)"
JOIN = DeviceEntry("join_agent_ends", join_on_grid, _JOIN, _JOIN_PARTS)
EARN = DeviceEntry("earn_of_agents", earn_on_grid, _EARN, _EARN_PARTS)
# Compiled, they check nothing.
JOIN_ON_CPU = CpuKernel(join_in_turn, _JOIN, parts=_JOIN_PARTS)
EARN_ON_CPU = CpuKernel(earn_in_turn, _EARN, parts=_EARN_PARTS)
