"""ClipRewards: bounds on the rewards that an agent learns from."""

from __future__ import annotations

import numpy as np

from parllel.arrays import Array
from parllel.kernels.array_checks import check_dtype
from parllel.ops.normalize import normalize
from parllel.transforms.normalize_rewards import scaling_like
from parllel.transforms.transform import contiguous_elements, elements, output_like
from parllel.tree import ArrayDict, TreePath, path_text
from parllel.tree.agent_forms import joined, parts_of


class ClipRewards:
    """Replace `reward` by values in [low, high]; the tree keeps the environments' own rewards.

    NaN stays NaN. Rewards of several agents are a dictionary, or have an agent axis. In device and
    managed memory it is one launch for each leaf in the caller's current stream; nothing waits for
    it.

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
        self._clipped: dict[TreePath, Array] = {}
        self._identity: Array | None = None

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with the clipped `reward`, overwritten by the next call.

        Args:
            batch: a tree with `reward`, float32 [T, B, ...], or a dictionary of such.

        Raises:
            ValueError: the reward is not float32.
        """
        clipped = {}
        for path, reward in parts_of(batch["reward"]).items():
            check_dtype(path_text(("reward", *path)), reward, np.float32)
            clipped[path] = output_like(reward, self._clipped.get(path))
            if self._identity is None or self._identity.storage != reward.storage:
                self._identity = scaling_like(reward)
            normalize(
                contiguous_elements(reward),
                elements(self._identity),
                low=self._low,
                high=self._high,
                out_values=elements(clipped[path]),
            )
        self._clipped = clipped
        return batch.with_branches({"reward": joined(clipped)})
