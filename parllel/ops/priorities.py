"""Priorities of transitions, and draws and weights that follow them: of NumPy or CuPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from parllel.cuda import AnyArray, DeviceArray
from parllel.kernels import priorities as kernel
from parllel.kernels.sum_tree import ONE, SumTree, find_limit, lay_out, pack_largest
from parllel.ops.launching import launch_items
from parllel.ops.sides import address_of, as_argument, common_side, make_table
from parllel.ops.transitions import DrawnTransitions, DrawState, SampledRing
from parllel.storages import Side

NO_UPDATE = pack_largest(0, ONE)
"""The largest priority before the first update: 1."""


class Priorities:
    """The priorities of all places of a ring, in a tree of sums (`kernels.sum_tree`).

    Args:
        sums: int64 [count_numbers(n_places)], C-contiguous: the priorities, and sums of them.
        largest: int64 [1], of the same library. The largest priority that updates gave lately, as
            `NO_UPDATE` at first.
        n_places: steps that the ring has room for, of all environments together.

    Attributes:
        argument: what kernels are given for the tree.
        limit: the largest priority that a place may have, as an integer of the tree.
    """

    def __init__(self, sums: AnyArray, largest: AnyArray, n_places: int) -> None:
        self._side = common_side("priorities", (sums, largest))
        offsets = lay_out(n_places)
        table = make_table(offsets[:-1].tolist(), self._side)
        self._arrays: tuple[AnyArray, ...] = (
            sums,
            table,
            largest,
        )  # kept alive: kernels know addresses
        begin, offsets_begin, largest_begin = map(address_of, self._arrays)
        tree = SumTree(begin, offsets_begin, len(offsets) - 1, largest_begin)
        self._table = make_table(tree, self._side)
        self.argument = as_argument(self._table)
        self.limit = find_limit(n_places)

    def release(self) -> None:
        """Let go of the arrays, so that their memory can be freed. No op may be given this then."""
        self._arrays = ()


def count_numbers(n_places: int) -> int:
    """Return how many numbers the sums over the priorities of some places have."""
    return int(lay_out(n_places)[-1])


def refresh_priorities(
    ring: SampledRing, state: DrawState, priorities: Priorities, begin: int, n_steps: int
) -> None:
    """Let steps have a priority if and only if they can be sampled now.

    On a GPU it is one launch in the caller's current stream, as for the other functions here.

    Args:
        ring, state: what can be sampled.
        priorities: the priorities of all steps of the ring, updated. A step that can be sampled
            from now on gets the largest priority that the latest updates gave: those between
            two batches, since only there the number of the next step is the same.
        begin: number of the first step to look at.
        n_steps: how many steps to look at, from that one on.
    """
    n_items = n_steps * ring.width
    if n_items > 0:
        before = (ring.argument, *state.arguments, priorities.argument, begin)
        _run(kernel.REFRESH.name, ring.side, n_items, (*before, n_items))


def update_priorities(
    ring: SampledRing,
    state: DrawState,
    priorities: Priorities,
    *,
    index: AnyArray,
    error: AnyArray,
    alpha: np.float32,
    epsilon: np.float32,
) -> None:
    """Give transitions the priority (abs(error) + epsilon) ** alpha.

    Args:
        ring, state: what can be sampled; a transition that can't be keeps having no priority.
        priorities: the priorities of all steps of the ring, updated.
        index: int64 [n], C-contiguous, the transitions to update, by their identity.
        error: float32 [n], C-contiguous, of any sign; one that is NaN or infinite is left out.
        alpha, epsilon: 0 or more.
    """
    formula = alpha, epsilon, priorities.limit
    vectors = as_argument(index), as_argument(error)
    before = (ring.argument, *state.arguments, priorities.argument, *formula, *vectors)
    _run(kernel.UPDATE.name, ring.side, len(index), (*before, len(index)))


def draw_by_priority(
    ring: SampledRing, state: DrawState, priorities: Priorities, out: DrawnTransitions
) -> int:
    """Draw transitions in proportion to their priorities, one from each of equal shares of all.

    Args:
        ring, state: what to draw from; one step at least.
        priorities: the priorities of all steps of the ring.
        out: what is overwritten, on the same side; its scratch with the priorities drawn.

    Returns:
        For how many transitions there was none that can be sampled, all or none of them; their
        return and discount are NaN. On a GPU 0: the host does not wait to know.
    """
    before = (ring.argument, *state.arguments, priorities.argument)
    arguments = (*before, out.n_items, out.argument, out.scratch_argument)
    _run(kernel.DRAW.name, ring.side, out.n_items, arguments)
    return out.n_items if ring.side == "host" and not out.scratch[0] else 0


class Weighed(Protocol):
    """What was drawn by priority; `DrawnTransitions` has the meaning."""

    n_items: int
    scratch_argument: int | DeviceArray
    weight_argument: int | DeviceArray | None


def weigh_priorities(ring: SampledRing, state: DrawState, drawn: Weighed) -> None:
    """Write (smallest priority / priority) ** beta for each item drawn by priority.

    Args:
        ring, state: what was drawn from. The state has beta: how far weights undo priorities, 0 not
            at all, 1 wholly.
        drawn: transitions or windows, after their draw; their weights are overwritten.

    Raises:
        ValueError: they have no memory for weights.
    """
    weight = drawn.weight_argument
    if weight is None:
        raise ValueError("weigh_priorities: what was drawn has no weight; give it the array")
    arguments = (drawn.scratch_argument, drawn.n_items, state.argument, weight)
    _run(kernel.WEIGH.name, ring.side, drawn.n_items, arguments)


def _run(
    name: str, side: Side, n_items: int, arguments: Sequence[int | np.generic | DeviceArray]
) -> None:
    """Launch a kernel with a thread for each item, or run its twin."""
    if side == "gpu":
        launch_items(name, n_items, arguments)
    else:
        kernel.compiled(name)(*arguments)
