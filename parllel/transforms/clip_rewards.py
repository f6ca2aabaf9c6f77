"""ClipRewards: bounds on the rewards that an agent learns from."""

from __future__ import annotations

import numpy as np

from parllel.arrays import Array
from parllel.kernels.array_checks import check_dtype
from parllel.ops.normalize import normalize
from parllel.transforms.normalize_rewards import scaling_like
from parllel.transforms.transform import contiguous_elements, elements, output_like
from parllel.tree import ArrayDict


class ClipRewards:
    """Replace `reward` by values in [low, high]; the tree keeps the environments' own rewards.

    NaN stays NaN. In device and managed memory it is one launch in the caller's current stream;
    nothing waits for it.

    >>> batch = ArrayDict({"reward": Array((1, 3), np.float32)})
    >>> batch["reward"][...] = [[-5, 0.5, 2]]
    >>> ClipRewards()(batch)["reward"].to_ndarray().tolist()
    [[-1.0, 0.5, 1.0]]

    Args:
        low, high: float, the bounds, low < high.

    Raises:
        ValueError: low is not less than high.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"ClipRewards: got low {low} and high {high}, expected low < high")
        self._low, self._high = low, high
        self._clipped: Array | None = None
        self._identity: Array | None = None

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with the clipped `reward`, overwritten by the next call.

        Args:
            batch: a tree with `reward`, float32 [T, B, ...].

        Raises:
            ValueError: the reward is not float32.
        """
        reward = batch["reward"]
        check_dtype("reward", reward, np.float32)
        self._clipped = output_like(reward, self._clipped)
        if self._identity is None or self._identity.storage != reward.storage:
            self._identity = scaling_like(reward)
        normalize(
            contiguous_elements(reward),
            elements(self._identity),
            low=self._low,
            high=self._high,
            out_values=elements(self._clipped),
        )
        return batch.with_branches({"reward": self._clipped})
