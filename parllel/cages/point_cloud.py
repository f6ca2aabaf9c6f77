"""PointCloud: the space of clouds of points, which gymnasium has not."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, DTypeLike, NDArray

from parllel.arrays.jagged_writer import fit_dtype


class PointCloud(gym.Space[NDArray[Any]]):
    """The space of arrays [n, *feature_shape] of n points, from `min_points` to `max_points`.

    Unlike a `Box`, it has clouds with different numbers of points. Unlike gymnasium's `Sequence`,
    it has a largest number, so that memory for its clouds can be taken before the first one.

    >>> space = PointCloud(64, (3,), low=-1, high=1, min_points=8, seed=0)
    >>> cloud = space.sample()
    >>> 8 <= len(cloud) <= 64, cloud.shape[1:], cloud.dtype
    (True, (3,), dtype('float32'))
    >>> cloud in space, cloud[:5] in space, np.zeros((20, 2), np.float32) in space
    (True, False, False)

    Args:
        max_points: the largest number of points.
        feature_shape: shape of what is known of a point: (3,) for its coordinates.
        dtype: type of the elements.
        min_points: the smallest number of points.
        low, high: bounds of the elements, that broadcast to `feature_shape`; by default those of
            the dtype.
        seed: seed of the generator that draws samples.

    Raises:
        TypeError: a number of points is no integer, or the dtype is none of numbers.
        ValueError: min_points is negative, or larger than max_points; or the bounds have another
            shape, or are no numbers of the dtype.
    """

    def __init__(
        self,
        max_points: int,
        feature_shape: Sequence[int] = (3,),
        dtype: DTypeLike = np.float32,
        *,
        min_points: int = 0,
        low: ArrayLike | None = None,
        high: ArrayLike | None = None,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        self.max_points, self.min_points = operator.index(max_points), operator.index(min_points)
        if not 0 <= self.min_points <= self.max_points:
            raise ValueError(
                f"min_points: got {min_points}, expected from 0 to max_points, {max_points}"
            )
        kind = np.dtype(dtype)
        if kind.kind not in "iuf":
            raise TypeError(f"dtype: got {kind}, expected integers or floats")
        is_whole = kind.kind in "iu"
        limits: Any = np.iinfo(kind) if is_whole else None
        low = (limits.min if is_whole else -np.inf) if low is None else low
        high = (limits.max if is_whole else np.inf) if high is None else high
        shape = tuple(feature_shape)
        lowest, highest = (
            np.broadcast_to(fit_dtype(np.asarray(each), kind, name), shape)
            for name, each in (("low", low), ("high", high))
        )
        self.point_space: spaces.Box[Any] = spaces.Box(lowest, highest, dtype=kind.type)
        super().__init__(None, kind, seed)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of what is known of a point."""
        return self.point_space.shape

    @property
    def is_np_flattenable(self) -> Literal[False]:
        """Whether samples can be flattened to one length: they can't."""
        return False

    def sample(self, mask: None = None, probability: None = None) -> NDArray[Any]:
        """Draw a number of points, and each point as the `Box` of its bounds does.

        Args:
            mask, probability: None; a cloud has no actions to mask.
        """
        if mask is not None or probability is not None:
            raise ValueError("PointCloud.sample: got a mask, expected None: points have none")
        n_points = int(self.np_random.integers(self.min_points, self.max_points + 1))
        shape, one = (n_points, *self.feature_shape), self.point_space
        low, high = np.broadcast_to(one.low, shape), np.broadcast_to(one.high, shape)
        points = spaces.Box(low, high, dtype=one.dtype.type, seed=self.np_random)
        drawn: NDArray[Any] = points.sample()
        return drawn

    def contains(self, x: Any) -> bool:
        """Return whether a value is an array of so many points, all of them within the bounds."""
        if not isinstance(x, np.ndarray) or x.shape[1:] != self.feature_shape or not x.ndim:
            return False
        box = self.point_space
        return (
            x.ndim == 1 + len(self.feature_shape)
            and self.min_points <= len(x) <= self.max_points
            and np.can_cast(x.dtype, box.dtype)
            and bool(((x >= box.low) & (x <= box.high)).all())
        )

    def to_jsonable(self, sample_n: Iterable[NDArray[Any]]) -> list[Any]:
        """Return clouds as lists."""
        return [cloud.tolist() for cloud in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[NDArray[Any]]:
        """Return clouds that `to_jsonable` made lists of."""
        return [
            np.array(cloud, self.point_space.dtype).reshape(-1, *self.feature_shape)
            for cloud in sample_n
        ]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PointCloud)
            and (self.min_points, self.max_points) == (other.min_points, other.max_points)
            and self.point_space == other.point_space
        )

    __hash__ = None  # type: ignore[assignment]  # as gymnasium's spaces

    def __repr__(self) -> str:
        box = self.point_space
        return (
            f"PointCloud({self.min_points} to {self.max_points} points of {self.feature_shape},"
            f" {box.dtype})"
        )
