"""Cases of rings of several agents: the ends of environments, and what agents earn, by loops."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.ops.agent_transitions import (
    Agent,
    AgentRows,
    AgentsRing,
    Earned,
    EarnedRows,
    earn_of_agents,
    join_agent_ends,
)
from ptx_cases.comparing import assert_bits, assert_floats
from ptx_machine import floats

_FLAGS = ("terminated", "truncated", "valid")


class _Size(NamedTuple):
    n_rows: int
    width: int
    n_agents: int
    n_steps: int


class _Ring:
    """Random steps of agents, with an axis of agents or an array for each; flags may be shared."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.size = _Size(*(int(rng.integers(1, most)) for most in (9, 5, 5, 5)))
        n, n_agents = self.size.n_rows * self.size.width, self.size.n_agents
        self.numbers: dict[str, NDArray[Any]] = {
            "reward": rng.standard_normal((n, n_agents), np.float32)
        }
        is_axis = rng.random() < 0.5
        is_shared = rng.random() < 0.3
        for name, chance in zip(_FLAGS, (0.3, 0.3, 0.8), strict=True):
            flags = rng.random((n, n_agents)) < chance
            self.numbers[name] = np.repeat(flags[:, :1], n_agents, 1) if is_shared else flags
        self.has_valid = rng.random() < 0.7
        if not self.has_valid:
            self.numbers["valid"][:] = True
        on_device = {}
        for name, values in self.numbers.items():
            if is_shared and name != "reward":
                rows = AgentRows(cuda.to_device(np.ascontiguousarray(values[:, 0])))
                on_device[name] = [rows] * n_agents
            elif is_axis:
                axis = cuda.to_device(values)
                on_device[name] = [AgentRows(axis, place) for place in range(n_agents)]
            else:
                columns = [np.ascontiguousarray(each) for each in values.T]
                on_device[name] = [AgentRows(cuda.to_device(each)) for each in columns]
        if not self.has_valid:
            on_device["valid"] = [None] * n_agents
        self.is_axis = is_axis
        self.ends = {name: cuda.to_device(np.zeros(n, bool)) for name in _FLAGS}
        agents = [Agent(*each) for each in zip(*on_device.values(), strict=True)]
        self.on_device = AgentsRing(
            agents, **self.ends, width=self.size.width, n_steps=self.size.n_steps
        )

    def end_of(self, place: int) -> tuple[bool, bool, bool]:
        """Return the flags of an environment's step."""
        terminated, truncated, alive = (self.numbers[name][place] for name in _FLAGS)
        is_over = bool((terminated | truncated).all())
        has_terminated = is_over and bool(alive.any()) and bool(terminated[alive].all())
        return has_terminated, is_over and not has_terminated, bool(alive.any())

    def earned(self, place: int, agent: int, discount: np.float32) -> tuple[Any, ...]:
        """Return what an agent earns from a step on: return, discount and three flags."""
        total, factor = np.float32(0), np.float32(1)
        row, column = divmod(place, self.size.width)
        own = {name: self.numbers[name][:, agent] for name in self.numbers}
        if not own["valid"][place]:
            return np.float32(0), np.float32(0), False, True, False
        for step in range(self.size.n_steps):
            at = (row + step) % self.size.n_rows * self.size.width + column
            is_last = step == self.size.n_steps - 1 or any(self.end_of(at)[:2])
            if not own["valid"][at]:
                return np.float32(0), np.float32(0), False, True, False
            earned = np.array([factor]), own["reward"][[at]], np.array([total])
            total = floats.multiply_add(*earned)[0]
            factor *= discount
            terminated, truncated = bool(own["terminated"][at]), bool(own["truncated"][at])
            if terminated:
                return total, np.float32(0), True, truncated, True
            if truncated and not is_last:
                return np.float32(0), np.float32(0), False, True, False
            if is_last:
                break
        return total, factor, terminated, truncated, True


def join(rng: np.random.Generator) -> None:
    """The flags of some rows; those of others stay what they are."""
    ring = _Ring(rng)
    n = ring.size.n_rows * ring.size.width
    begin = int(rng.integers(n + 1))
    n_places = int(rng.integers(n - begin + 1))
    join_agent_ends(ring.on_device, begin, n_places)
    expected = np.zeros((3, n), bool)
    for place in range(begin, begin + n_places):
        expected[:, place] = ring.end_of(place)
    for name, flags in zip(_FLAGS, expected, strict=True):
        assert_bits(name, ring.ends[name], flags)


def earn(rng: np.random.Generator) -> None:
    """What agents earn from any steps on; NaN where none was found."""
    ring, size = _Ring(rng), (int(rng.choice([1, 5, 140])), 0)
    n_items, n_agents = size[0], ring.size.n_agents
    n = ring.size.n_rows * ring.size.width
    join_agent_ends(ring.on_device, 0, n)
    row = rng.integers(n, size=n_items)
    of_envs = np.where(rng.random(n_items) < 0.1, np.nan, 1).astype(np.float32)
    kinds = dict.fromkeys(EarnedRows._fields, bool) | {
        "n_step_return": np.float32,
        "n_step_discount": np.float32,
    }
    shape = (n_items, n_agents) if ring.is_axis else (n_items,)
    n_arrays = 1 if ring.is_axis else n_agents
    out = [
        {name: cuda.library().empty(shape, dtype) for name, dtype in kinds.items()}
        for _ in range(n_arrays)
    ]
    places = [(0, agent) if ring.is_axis else (agent, 0) for agent in range(n_agents)]
    agents = [
        EarnedRows(**{name: AgentRows(out[array][name], place) for name in kinds})
        for array, place in places
    ]
    on_device = cuda.to_device(row), cuda.to_device(of_envs)
    discount = np.float32(rng.choice([0, 0.9, 1]))
    earned = Earned(agents, row=on_device[0], n_step_discount=on_device[1])
    earn_of_agents(ring.on_device, float(discount), earned)
    expected = {name: np.zeros((n_items, n_agents), dtype) for name, dtype in kinds.items()}
    for item, agent in np.ndindex(n_items, n_agents):
        found = ring.earned(int(row[item]), agent, discount)
        if np.isnan(of_envs[item]):
            found = (np.float32(np.nan), np.float32(np.nan), *found[2:4], False)
        for name, value in zip(kinds, _ordered(found, kinds), strict=True):
            expected[name][item, agent] = value
    for name in kinds:
        own = expected[name] if ring.is_axis else None
        for number, arrays in enumerate(out):
            right = own if own is not None else np.ascontiguousarray(expected[name][:, number])
            compare = assert_floats if kinds[name] is np.float32 else assert_bits
            compare(name, arrays[name], right)


def _ordered(found: tuple[Any, ...], kinds: dict[str, Any]) -> list[Any]:
    """Return the results in the order of the kinds."""
    named = dict(zip(EarnedRows._fields, found, strict=True))
    return [named[name] for name in kinds]
