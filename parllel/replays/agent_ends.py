"""AgentEnds: the ends of environments' episodes in a ring of several agents, of those of agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array, ArraySpec
from parllel.arrays.interop import to_host
from parllel.cuda import AnyArray
from parllel.ops.agent_transitions import (
    Agent,
    AgentRows,
    AgentsRing,
    Earned,
    EarnedRows,
    join_agent_ends,
)
from parllel.tree import ArrayDict, TreePath, allocate_tree
from parllel.tree.agent_forms import N_BATCH, has_agents, joined, part_for, parts_of
from parllel.tree.leaves import as_ndarray

ENDS = "ends"  # the branch beside the final observations
_FLAGS = ("terminated", "truncated", "valid")
EARNED: dict[str, np.dtype[Any]] = {
    "n_step_return": np.dtype(np.float32),
    "n_step_discount": np.dtype(np.float32),
    "terminated": np.dtype(bool),
    "truncated": np.dtype(bool),
    "valid": np.dtype(bool),
}
"""Branches of a minibatch that each agent has: see `EarnedRows`."""


class AgentEnds:
    """Flags of environments with several agents, beside the ring of a sample tree.

    An environment's episode ends in a step in which each of its agents has ended, or is dead. It
    has terminated there if all agents have that were alive; else it was truncated, and its final
    observation is needed. A step is valid in which any agent is alive.

    Args:
        samples: the sample tree of a replay buffer.
        storage: kind of the memory.
        n_steps: steps of a transition.

    Attributes:
        tree: `terminated`, `truncated` and `valid`, bool [full_size, B].
        flags: the same as arrays [full_size * B] of NumPy or CuPy.
        ring: the agents' leaves, as kernels find them.
    """

    def __init__(self, samples: ArrayDict, storage: str, n_steps: int) -> None:
        self._rewards = parts_of(samples["reward"])
        first = next(iter(self._rewards.values()))
        on_gpu = first.side == "gpu"
        self.tree = allocate_tree(AgentEnds.make_specs(samples)[ENDS], storage)
        self._width = first.shape[1]
        self.flags = {name: _rows_of(self.tree[name], on_gpu) for name in _FLAGS}
        self.ring = AgentsRing(
            [
                agent
                for path, reward in self._rewards.items()
                for agent in _agents(samples, path, reward, on_gpu)
            ],
            **self.flags,
            width=self._width,
            n_steps=n_steps,
        )

    @classmethod
    def of(cls, samples: ArrayDict, storage: str, n_steps: int) -> AgentEnds | None:
        """Return the ends of a tree with several agents; None for one agent."""
        return cls(samples, storage, n_steps) if has_agents(samples["reward"]) else None

    @staticmethod
    def make_specs(samples: ArrayDict) -> ArrayDict:
        """Return the specs of the memory that is allocated; none for one agent."""
        if not has_agents(samples["reward"]):
            return ArrayDict()
        first = next(iter(parts_of(samples["reward"]).values()))
        shape = (first.full_size, first.shape[1])
        return ArrayDict({ENDS: {name: ArraySpec.of(shape, np.bool_) for name in _FLAGS}})

    def join(self, row: int, n_rows: int) -> None:
        """Find the flags of some rows of the ring; on a device by one launch."""
        join_agent_ends(self.ring, row * self._width, n_rows * self._width)

    def make_specs_of(self, batch_size: int) -> dict[str, Any]:  # Any: a spec, or a tree of them
        """Return the specs of what each agent has in a minibatch (`EARNED`)."""
        return {
            name: joined(
                {
                    path: ArraySpec.of((batch_size,), dtype, reward.shape[N_BATCH:])
                    for path, reward in self._rewards.items()
                }
            )
            for name, dtype in EARNED.items()
        }

    def make_earned(
        self, tree: ArrayDict, *, row: AnyArray, n_step_discount: AnyArray, on_gpu: bool
    ) -> Earned:
        """Return where `ops.agent_transitions.earn_of_agents` writes.

        Args:
            tree: a minibatch, with Arrays of `make_specs_of`.
            row, n_step_discount: as for `Earned`.
            on_gpu: whether a GPU writes them.
        """
        rows = []
        for path, reward in self._rewards.items():
            leaves = [_elements(part_for(name, tree[name], path), on_gpu) for name in EARNED]
            for place in range(_count(reward)):
                rows.append(EarnedRows(*(AgentRows(leaf, place) for leaf in leaves)))
        return Earned(rows, row=row, n_step_discount=n_step_discount)


def ends_of_rows(rows: Mapping[str, Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return whether environments have terminated, and whether they were truncated, bool [B] each.

    Args:
        rows: `terminated`, `truncated` and, or not, `valid`, of any library: [B] of environments
            with one agent, else [B, N], or dictionaries by agents. The host waits for a device.

    >>> flags = {"terminated": [[True, False], [True, True]], "truncated": [[False] * 2] * 2}
    >>> ends_of_rows(flags)[0]
    array([False,  True])
    """
    given = {name: as_flags(rows[name]) for name in _FLAGS if name in rows}
    trees = [each for each in given.values() if isinstance(each, ArrayDict)]
    if not trees and all(each.ndim == 1 for each in given.values()):
        return given["terminated"], given["truncated"]
    paths: list[TreePath] = list(parts_of(trees[0])) if trees else [()]
    columns: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in _FLAGS}
    for path in paths:
        own = {name: part_for(name, each, path) for name, each in given.items()}
        own.setdefault("valid", np.ones_like(own["terminated"]))
        shape = max((each.shape for each in own.values()), key=len)
        for name, each in own.items():
            wide = each.reshape(each.shape + (1,) * (len(shape) - each.ndim))
            columns[name].append(np.broadcast_to(wide, shape).reshape(shape[0], -1))
    terminated, truncated, valid = (np.concatenate(each, axis=1) for each in columns.values())
    is_over: NDArray[np.bool_] = np.logical_and.reduce(terminated | truncated, axis=1)
    has_terminated: NDArray[np.bool_] = is_over & (terminated | ~valid).all(axis=1)
    has_terminated &= valid.any(axis=1)
    return has_terminated, is_over & ~has_terminated


def as_flags(rows: Any) -> Any:  # Any: a leaf of any library or a tree; arrays of NumPy
    """Return flags of any library on the host, for which it waits for a device: bool, or a tree."""
    if isinstance(rows, Mapping):
        return ArrayDict({name: as_flags(each) for name, each in rows.items()})
    return np.asarray(as_ndarray(rows) if isinstance(rows, Array) else to_host(rows)).astype(bool)


def _agents(samples: ArrayDict, path: TreePath, reward: Array, on_gpu: bool) -> list[Agent]:
    """Return the agents of a leaf of rewards, one or those of its axis."""
    leaves: dict[str, AnyArray] = {"reward": _rows_of(reward, on_gpu)}
    for name in _FLAGS:
        if name in samples:
            leaves[name] = _rows_of(part_for(name, samples[name], path), on_gpu)
    valid = leaves.pop("valid", None)
    return [
        Agent(
            **{name: _at(rows, place) for name, rows in leaves.items()},
            valid=None if valid is None else _at(valid, place),
        )
        for place in range(_count(reward))
    ]


def _at(rows: AnyArray, place: int) -> AgentRows:
    """Return what an agent has in rows [n, N], or in rows [n] of all agents."""
    return AgentRows(rows, place if rows.ndim > 1 else 0)


def _count(reward: Array) -> int:
    """Return the number of agents of a leaf [T, B] or [T, B, N]."""
    return int(np.prod(reward.shape[N_BATCH:]))


def _rows_of(leaf: Array, on_gpu: bool) -> AnyArray:
    """Return the rows of a leaf's ring over its memory, with T and B as one dimension."""
    return _elements(leaf.full, on_gpu).reshape(-1, *leaf.shape[N_BATCH:])


def _elements(leaf: Array, on_gpu: bool) -> AnyArray:
    return leaf.to_cupy() if on_gpu else leaf.to_ndarray()
