"""BoxScale: numbers from -1 to 1, as a policy gives them, on the bounds of a Box."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from parllel.cages.values.spaces import stored_dtype


class BoxScale:
    """Scale actions [..., k] from [-1, 1] to the bounds of a Box, each number by its own bounds.

    action = (low + high) / 2 + (high - low) / 2 * own

    Actions of the space have the dtype of the sample tree, and never leave the space, however they
    are rounded: -1 and what lies below becomes exactly the lower bound, 1 and above the upper one.
    Both bounds come back as exactly -1 and 1. Own numbers are float32; where the tree's rows are
    float64, numbers are scaled in that.

    Args:
        space: the space of a single environment's actions.
        dim: the number k.
        device: where actions are.

    Raises:
        TypeError: the space is no Box of floats.
        ValueError: it has another shape than (k,), a bound is infinite, or two bounds are equal.

    Example:
        >>> scale = BoxScale(spaces.Box(np.float32([0, -2]), np.float32([10, 2])), 2)
        >>> scale.to_space(torch.tensor([[-1.0, 0.5]]))
        tensor([[0., 1.]])
        >>> scale.from_space(torch.tensor([[5.0, 2.0]]))
        tensor([[0., 1.]])
    """

    def __init__(
        self, space: spaces.Space[Any], dim: int, device: torch.device | str = "cpu"
    ) -> None:
        box = check_box(space, dim)
        if not (np.isfinite(box.low) & np.isfinite(box.high)).all():
            raise ValueError(
                f"action space: got {space}, expected finite bounds, to which actions are scaled;"
                " wrap the environment in gymnasium.wrappers.RescaleAction or another one that has"
                " bounds, or use Gaussian"
            )
        stored = stored_dtype(box)
        # As rows have them: cages put a bound that was rounded outside of the space back.
        low, high = (bound.astype(stored).astype(np.float64) for bound in (box.low, box.high))
        own = torch.float64 if stored == np.float64 else torch.float32

        def make(numbers: Any) -> Tensor:  # Any: an array of numbers, of one shape
            return torch.as_tensor(numbers, dtype=own, device=device)

        self._stored = torch.from_numpy(np.empty(0, stored)).dtype
        self._low, self._high = make(low), make(high)
        # Halves first: the sum of two bounds may be more than a float can be.
        self._middle, self._half = make(low / 2 + high / 2), make(high / 2 - low / 2)
        if not (self._half > 0).all():
            raise ValueError(
                f"action space: got {space}, expected lower bounds that are less than the upper"
                " ones; leave out of the space what can't be chosen"
            )

    def to_space(self, action: Tensor) -> Tensor:
        """Return the space's actions, in the dtype of the sample tree; NaN stays NaN."""
        own = action.to(self._half.dtype)
        inside = (self._middle + self._half * own).clamp(self._low, self._high)
        reached = torch.where(own >= 1, self._high, torch.where(own <= -1, self._low, inside))
        return reached.to(self._stored)

    def from_space(self, action: Tensor) -> Tensor:
        """Return float32 in [-1, 1] for actions of the space; outside counts as at the bound."""
        given = action.to(self._half.dtype)
        inside = ((given - self._middle) / self._half).clamp(-1, 1)
        own = torch.where(given >= self._high, 1, torch.where(given <= self._low, -1, inside))
        return own.to(torch.float32)


def check_box(space: spaces.Space[Any], dim: int) -> spaces.Box:
    """Return a space of actions that is a Box of k floats.

    Raises:
        TypeError: the space is another one, or one of integers.
        ValueError: it has another shape.
    """
    if not isinstance(space, spaces.Box):
        raise TypeError(f"action space: got {space}, expected a Box; use another distribution")
    if space.dtype.kind != "f":
        raise TypeError(
            f"action space: got {space}, expected a Box of floats: integers between two bounds are"
            " choices; give the environment a MultiDiscrete space, and use MultiCategorical"
        )
    if space.shape != (dim,):
        raise ValueError(
            f"action space: got {space}, expected the shape ({dim},), as the distribution has it;"
            " make the distribution with the size of the space, and flatten a space of more axes"
        )
    return space
