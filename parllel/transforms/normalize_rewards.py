"""NormalizeRewards: rewards divided by the deviation of discounted returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.kernels.array_checks import check_dtype
from parllel.kernels.moment_layout import LANES, N_KEPT, SCALE
from parllel.ops.normalize import normalize
from parllel.ops.running_returns import sum_rewards
from parllel.ops.sides import copy_from_host, copy_to_host, fill_rows
from parllel.transforms.moments import Moments
from parllel.transforms.running_moments import RunningMoments
from parllel.transforms.transform import (
    contiguous_elements,
    elements,
    output_like,
    side_of_leaves,
)
from parllel.tree import ArrayDict
from parllel.tree.not_finite import find_not_finite
from parllel.tree.valid_rows import as_mask, valid_rows


class NormalizeRewards:
    """Divide `reward` by the standard deviation of the discounted returns that were seen.

    G[t] = reward[t] + discount * (1 - done[t - 1]) * G[t - 1],  done = terminated | truncated
    reward'[t] = clip(reward[t] / sqrt(variance + epsilon), -clip, clip)

    The variance is that of all G of all batches so far, this one included, from their mean. An
    episode that goes on from batch to batch carries its G on. Rows that the branch `valid` calls no
    transitions count for nothing, and the episode before them ends there. The tree keeps the
    environments' own rewards, and so does a replay buffer over it, which draws these: a transform
    is for what learns from batches.

    Returns are summed up in float32, and their moments merged in double precision. The host reads
    three numbers of each batch; of memory of a GPU it waits for them. A frozen object (`is_frozen`)
    reads nothing, and can be captured in a CUDA graph after a first call.

    A runner saves the state with its own (`RLRunner.state_dict`), and calls `restart` where all
    environments were reset between two batches; a loop of your own does both itself.

    >>> batch = ArrayDict(
    ...     {
    ...         "reward": Array((2, 1), np.float32),
    ...         "terminated": Array((2, 1), bool),
    ...         "truncated": Array((2, 1), bool),
    ...     }
    ... )
    >>> batch["reward"][...] = [[4], [0]]  # G is 4 and 2, whose variance is 1
    >>> transform = NormalizeRewards(discount=0.5, epsilon=3.0)
    >>> transform(batch)["reward"].to_ndarray()[:, 0].tolist()
    [2.0, 0.0]
    >>> transform.moments.count, transform.deviation
    (2, 2.0)

    Args:
        discount: float in [0, 1], that of the values which are learned (`EstimateAdvantage`).
        clip: bound of the magnitude, more than 0; math.inf for none.
        epsilon: float, more than 0, added to the variance.

    Attributes:
        is_frozen: whether batches change nothing: they are scaled by what was seen before, and
            their returns are not followed, so that these begin at 0 afterwards. It may be set.

    Raises:
        ValueError: a number is out of range.

    Source: Engstrom et al. 2020, arXiv:2005.12729, algorithm 1; with its reset and this epsilon,
        VecNormalize of Stable-Baselines3. gymnasium's NormalizeReward resets elsewhere.
    """

    def __init__(
        self, *, discount: float = 0.99, clip: float = 10.0, epsilon: float = 1e-8
    ) -> None:
        if not 0 <= discount <= 1:
            raise ValueError(f"discount: got {discount}, expected a number in [0, 1]")
        for name, number in (("clip", clip), ("epsilon", epsilon)):
            if not number > 0:
                raise ValueError(f"{name}: got {number}, expected more than 0")
        self.is_frozen = False
        self._discount, self._clip, self._epsilon = discount, clip, epsilon
        self._moments = Moments(0, np.float64(0), np.float64(0))
        # G where the next batch begins; of the host where it was loaded. None for zeros.
        self._begin: Array | NDArray[np.float32] | None = None
        self._end: Array | None = None
        self._returns: Array | None = None
        self._batch_moments: RunningMoments | None = None
        self._scaling: Array | None = None
        self._scale = math.nan  # what `_scaling` holds
        self._normalized: Array | None = None

    @property
    def moments(self) -> Moments:
        """Moments of all returns that were seen, float64."""
        return self._moments

    @property
    def deviation(self) -> float:
        """What rewards are divided by."""
        return math.sqrt(self._moments.variance + self._epsilon)

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with the new `reward`, overwritten by the next call.

        Args:
            batch: a tree with float32 [T, B, ...] `reward`, bool [T, B] `terminated` and
                `truncated`, and bool [T, B] `valid` or none. The host works on all of them, or a
                GPU does.

        Raises:
            ValueError: a reward is NaN or infinite, or so large that its square is; a leaf has
                another dtype or shape, or there are other environments than before. What was seen
                is what it was.
        """
        reward = batch["reward"]
        check_dtype("reward", reward, np.float32)
        if self.is_frozen:
            self._begin = None
        else:
            self._see(batch)
        self._normalized = output_like(reward, self._normalized)
        normalize(
            contiguous_elements(reward),
            elements(self._scaling_like(reward)),
            low=-self._clip,
            high=self._clip,
            out_values=elements(self._normalized),
        )
        return batch.with_branches({"reward": self._normalized})

    def restart(self) -> None:
        """Begin all returns at 0 again: the environments were reset. Moments stay."""
        self._begin = None

    def merge(self, *others: NormalizeRewards) -> None:
        """Add what others have seen, as in other runs, to what this one has; they keep theirs."""
        for other in others:
            self._moments = self._moments.merged(other.moments)

    def state_dict(self) -> dict[str, Any]:  # Any: numbers, and an array or None
        """Return the moments, and where the next batch begins, on the host.

        The host waits where that lives in memory of a GPU.
        """
        begin = self._begin
        if isinstance(begin, Array):
            begin = copy_to_host(elements(begin))
        count, mean, m2 = self._moments
        return {"count": count, "mean": float(mean), "m2": float(m2), "begin": begin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an object was when `state_dict` was called, in any kind of memory.

        Raises:
            KeyError: an entry is missing.
        """
        moments = Moments(int(state["count"]), np.float64(state["mean"]), np.float64(state["m2"]))
        begin = state["begin"]
        self._begin = None if begin is None else np.array(begin, np.float32)
        self._moments = moments

    def _see(self, batch: ArrayDict) -> None:
        """Take a batch's returns into the moments, or leave all as it was and raise."""
        leaves = {name: batch[name] for name in ("reward", "terminated", "truncated")}
        side_of_leaves(**leaves)
        reward, valid = leaves["reward"], valid_rows(batch)
        if valid is not None:
            leaves["truncated"] = _cut(leaves, valid)
        begin = self._begin_for(reward)
        self._returns = returns = output_like(reward, self._returns)
        self._end = output_like(begin, self._end)
        sum_rewards(
            _as_columns(reward),
            contiguous_elements(leaves["terminated"]),
            contiguous_elements(leaves["truncated"]),
            elements(begin),
            discount=self._discount,
            out_return=_as_columns(returns),
            out_end=elements(self._end),
        )
        if self._batch_moments is None or self._batch_moments.storage != returns.storage:
            self._batch_moments = RunningMoments(returns, feature_shape=())
        self._batch_moments.reset()
        self._batch_moments.update(returns, valid=valid)
        if self._batch_moments.count:  # a row is valid
            seen = Moments.of(self._batch_moments)
            if not np.isfinite([seen.mean, seen.m2]).all():
                found = find_not_finite(batch, ("reward",)) or "the squares of returns overflow"
                raise ValueError(
                    f"batch: {found}; its moments would be NaN. Find out why the environment gave"
                    " it, or replace it before (a transform, a wrapper)"
                )
            self._moments = self._moments.merged(seen)
        self._begin, self._end = self._end, begin

    def _begin_for(self, reward: Array) -> Array:
        """Return the returns at the beginning of a batch, float32 [columns], where it lies."""
        n_columns, begin = math.prod(reward.shape[1:]), self._begin
        if begin is not None and begin.shape != (n_columns,):
            raise ValueError(
                f"reward: got {n_columns} columns, expected {begin.shape[0]} as in the batch"
                " before; call restart between batches of different environments"
            )
        if isinstance(begin, Array) and begin.storage == reward.storage:
            return begin
        new = reward.new_array(
            batch_shape=(n_columns,), feature_shape=(), padding=0, full_size=n_columns
        )
        if begin is not None:
            host = copy_to_host(elements(begin)) if isinstance(begin, Array) else begin
            copy_from_host(np.ascontiguousarray(host), out=elements(new))
        return new

    def _scaling_like(self, reward: Array) -> Array:
        """Return moments that scale rewards and shift nothing, in their kind of memory."""
        if self._scaling is None or self._scaling.storage != reward.storage:
            self._scaling = scaling_like(reward)
            self._scale = math.nan
        scale = 1 / self.deviation
        if scale != self._scale:
            fill_rows((SCALE,), scale, out=elements(self._scaling))
            self._scale = scale
        return self._scaling


def scaling_like(reward: Array) -> Array:
    """Return moments for `ops.normalize` that leave a number as it is: mean 0 and scale 1."""
    shape = (N_KEPT, LANES)
    kept = reward.new_array(batch_shape=shape, feature_shape=(), padding=0, full_size=N_KEPT)
    kept[SCALE] = 1
    return kept


def _as_columns(rewards: Array) -> Any:  # Any: an array of NumPy or CuPy
    """Return rewards [T, B, ...] as [T, columns]."""
    values = contiguous_elements(rewards)
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _cut(leaves: Mapping[str, Array], valid: NDArray[np.bool_]) -> Array:
    """Return flags `truncated` that end an episode with each row that is no transition."""
    flags = leaves["truncated"]
    cut = flags.new_array(padding=0, full_size=len(flags))
    cut[...] = as_mask("truncated", flags) | ~valid
    return cut
