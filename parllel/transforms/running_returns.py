"""RunningReturns: discounted sums of rewards from the beginnings of episodes, across batches."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.ops.running_returns import sum_rewards
from parllel.ops.sides import copy_from_host, copy_to_host
from parllel.transforms.transform import (
    as_columns,
    contiguous_elements,
    elements,
    output_like,
    side_of_leaves,
)
from parllel.tree.valid_rows import as_mask, over_agents


class RunningReturns:
    """Sum up the rewards of episodes, one leaf of a batch after the other.

    G[t] = reward[t] + discount * (1 - done[t - 1]) * G[t - 1],  done = terminated | truncated

    Args:
        discount: float in [0, 1].
        begin: float32 [columns] on the host, G where the next batch begins; None for zeros.

    >>> reward, flags = Array((3, 1), np.float32), Array((3, 1), bool)
    >>> reward[...] = 1
    >>> returns = RunningReturns(0.5)
    >>> returns.sum(reward, flags, flags).to_ndarray()[:, 0].tolist()
    [1.0, 1.5, 1.75]
    >>> returns.keep()
    >>> returns.begin_on_host()
    array([1.75], dtype=float32)
    """

    def __init__(self, discount: float, begin: object = None) -> None:
        self._discount = discount
        # Of the host where it was loaded. None for zeros.
        self._begin: Array | NDArray[np.float32] | None = (
            None if begin is None else np.array(begin, np.float32)
        )
        self._end: Array | None = None
        self._was: Array | None = None  # the beginning of the batch that was summed up
        self._returns: Array | None = None

    def restart(self) -> None:
        """Begin at 0 again."""
        self._begin = None

    def begin_on_host(self) -> NDArray[np.float32] | None:
        """Return where the next batch begins; the host waits for memory of a GPU."""
        if isinstance(self._begin, Array):
            begin: NDArray[np.float32] = copy_to_host(elements(self._begin))
            return begin
        return self._begin

    def sum(
        self,
        reward: Array,
        terminated: Array,
        truncated: Array,
        valid: NDArray[np.bool_] | None = None,
    ) -> Array:
        """Return G of a batch, like the reward, overwritten by the next call.

        Called again before `keep`, it begins where it began before.

        Args:
            reward: float32 [T, B, ...].
            terminated, truncated: bool [T, B], or of the shape of `reward`.
            valid: bool of either shape, on the host: where it is False, an episode ends.

        Raises:
            ValueError: leaves have other shapes, or there are other environments than before.
        """
        side_of_leaves(reward=reward, terminated=terminated, truncated=truncated)
        flags = [terminated, truncated]
        if valid is not None:
            flags[1] = _cut(truncated, valid)
        shape = max((flag.shape for flag in flags), key=len)
        flags = [_widened(flag, shape) if flag.shape == shape[:2] else flag for flag in flags]
        begin = self._begin_for(reward)
        self._returns = output_like(reward, self._returns)
        self._end = output_like(begin, self._end)
        sum_rewards(
            as_columns(contiguous_elements(reward)),
            as_columns(contiguous_elements(flags[0])),
            as_columns(contiguous_elements(flags[1])),
            elements(begin),
            discount=self._discount,
            out_return=as_columns(elements(self._returns)),
            out_end=elements(self._end),
        )
        self._was = begin
        return self._returns

    def keep(self) -> None:
        """Let the next batch begin where the one that was summed up last has ended."""
        self._begin, self._end = self._end, self._was

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


def _cut(truncated: Array, valid: NDArray[np.bool_]) -> Array:
    """Return flags that end an episode with each row that is no transition."""
    flags = as_mask("truncated", truncated)
    shape = max(flags.shape, valid.shape, key=len)
    cut = _new_flags(truncated, shape)
    cut[...] = over_agents(flags, shape) | ~over_agents(valid, shape)
    return cut


def _widened(flags: Array, shape: tuple[int, ...]) -> Array:
    """Return flags [T, B] for each agent of an axis; the host waits for those of a GPU."""
    if flags.shape == shape:
        return flags
    wide = _new_flags(flags, shape)
    wide[...] = np.broadcast_to(over_agents(as_mask("terminated", flags), shape), shape)
    return wide


def _new_flags(like: Array, shape: tuple[int, ...]) -> Array:
    return like.new_array(
        batch_shape=shape[:2], feature_shape=shape[2:], padding=0, full_size=shape[0]
    )
