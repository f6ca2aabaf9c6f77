"""ActionMap: between the actions of a distribution and those of an environment's space."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ActionMap(Protocol):
    """A one-to-one map between a distribution's own actions and those that environments take.

    The sample tree and the environments have actions of the space; distributions, and models that
    are given actions, have their own. Agents call the two methods where actions go out and come
    back, and nothing else knows of the space. Nothing waits for a device.

    Example:
        >>> class Halves:  # a space counts in halves what the distribution counts in wholes
        ...     def to_space(self, action):
        ...         return 0.5 * action
        ...     def from_space(self, action):
        ...         return 2 * action
        >>> halves: ActionMap = Halves()
        >>> halves.from_space(halves.to_space(torch.tensor([3.0])))
        tensor([3.])
    """

    def to_space(self, action: Tensor) -> Tensor:
        """Return the space's actions for the distribution's own, [...] or [..., k]."""

    def from_space(self, action: Tensor) -> Tensor:
        """Return the distribution's own actions for those of the space, of the same shape."""


class Offset:
    """Integers that are counted from 0, and from another number in the space.

    Args:
        start: the space's first action, or that of each choice, int64 [k].
        device: where actions are.

    Example:
        >>> offset = Offset(5, torch.device("cpu"))
        >>> offset.to_space(torch.tensor([0, 2])), offset.from_space(torch.tensor([5, 7]))
        (tensor([5, 7]), tensor([0, 2]))
    """

    def __init__(self, start: int | NDArray[np.integer[Any]], device: torch.device) -> None:
        self._start = torch.as_tensor(start, dtype=torch.int64, device=device)

    def to_space(self, action: Tensor) -> Tensor:
        """Return actions as the space counts them."""
        return action + self._start

    def from_space(self, action: Tensor) -> Tensor:
        """Return actions as they are counted from 0, int64; rows may keep them in fewer bits."""
        return action.long() - self._start


def offset(start: int | NDArray[np.integer[Any]], device: torch.device) -> Offset | None:
    """Return the map of integers that begin at a number; None where both count from 0."""
    return Offset(start, device) if np.any(start) else None
