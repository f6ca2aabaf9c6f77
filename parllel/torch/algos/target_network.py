"""TargetNetwork: a copy of a network that follows it slowly, for the targets of values."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class TargetNetwork:
    """A copy of a network, in evaluation mode and without gradients.

    Args:
        own: the network that learns.

    Attributes:
        model: the copy, as the network is when this object is made.

    Source: Mnih et al. 2015, Nature 518 (copies); Lillicrap et al. 2016, arXiv:1509.02971
        (averages).

    Example:
        >>> own = nn.Linear(1, 1, bias=False)
        >>> target = TargetNetwork(own)
        >>> before = target.model.weight.item()
        >>> _ = nn.init.constant_(own.weight, before + 1)
        >>> target.follow(share=0.25)
        >>> round(target.model.weight.item() - before, 6)
        0.25
    """

    def __init__(self, own: nn.Module) -> None:
        self._own = own
        self.model = copy.deepcopy(own).eval().requires_grad_(False)

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Move the copy's parameters towards the network's; its buffers become those.

        target += share * (own - target)

        Args:
            share: share of the difference, in (0, 1]; with 1 it is a copy again.
        """
        target, own = self.model, self._own
        torch._foreach_lerp_(list(target.parameters()), list(own.parameters()), share)
        for kept, buffer in zip(target.buffers(), own.buffers(), strict=True):
            kept.copy_(buffer)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the copy's tensors, over its own memory."""
        return dict(self.model.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the copy of a like network was when `state_dict` was called.

        Raises:
            RuntimeError: names or shapes differ.
        """
        self.model.load_state_dict(state)
