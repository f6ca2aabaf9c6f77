"""ClipRewards: bounds on what the agent learns from."""

from __future__ import annotations

import numpy as np

from parllel.arrays import Array
from parllel.transforms.outputs import output_like
from parllel.tree import ArrayDict


class ClipRewards:
    """Replace `reward` by values in [low, high]; the tree keeps the environments' own rewards.

    Args:
        low, high: bounds, low < high.

    Raises:
        ValueError: low is not less than high.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"ClipRewards: got low {low} and high {high}, expected low < high")
        self._low, self._high = low, high
        self._clipped: Array | None = None

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with the clipped `reward`, overwritten by the next call."""
        reward = batch["reward"]
        self._clipped = output_like(reward, self._clipped)
        np.clip(reward.to_ndarray(), self._low, self._high, out=self._clipped.to_ndarray())
        return ArrayDict({**batch, "reward": self._clipped})
