"""SpreadFlags: flags of whole environments, repeated for each agent of an agent axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from parllel.arrays import Array
from parllel.ops.row_copy import prepare_gather
from parllel.ops.sides import to_side
from parllel.transforms.transform import contiguous_elements, elements
from parllel.tree.agent_forms import N_BATCH


class SpreadFlags:
    """Copy flags [T, B] of all agents to flags [T, B, N] of each, as often as it is called.

    All that have to be copied are copied at once; in device memory by one launch in the caller's
    current stream. Flags that have the agent axis already are left as they are.

    >>> reward = Array((2, 1), np.float32, feature_shape=(3,))
    >>> terminated = Array((2, 1), bool)
    >>> terminated[1] = True
    >>> spread = SpreadFlags([terminated], like=reward)
    >>> spread()
    >>> spread.flags[0].to_ndarray()[:, 0].tolist()
    [[False, False, False], [True, True, True]]

    Args:
        flags: Arrays of bool, [T, B] or [T, B, N].
        like: an Array [T, B, N].

    Attributes:
        flags: Arrays [T, B, N], written by a call; or those that were given.
    """

    def __init__(self, flags: Sequence[Array], *, like: Array) -> None:
        agents = like.shape[N_BATCH:]
        shared = [leaf for leaf in flags if agents and leaf.ndim == N_BATCH]
        own = {id(leaf): _like(leaf, like) for leaf in shared}
        self.flags = [own.get(id(leaf), leaf) for leaf in flags]
        self._numbers = None
        if shared:
            numbers = np.arange(math.prod(like.shape)) // math.prod(agents)
            self._numbers = to_side(numbers, like.side)
            self._gather = prepare_gather(
                [elements(own[id(leaf)]).reshape(-1) for leaf in shared],
                [contiguous_elements(leaf).reshape(-1) for leaf in shared],
                names=["flags"] * len(shared),
            )

    def __call__(self) -> None:
        """Copy what the flags are now."""
        if self._numbers is not None and len(self._numbers):
            self._gather(self._numbers)


def _like(flags: Array, like: Array) -> Array:
    return like.new_array(dtype=flags.dtype, padding=0, full_size=len(like))
