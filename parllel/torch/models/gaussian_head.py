"""GaussianHead: the layer that turns features into the parameters of a Gaussian policy."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from parllel.torch.distributions import GaussianParams
from parllel.torch.models.actor_critic import POLICY_GAIN


class GaussianHead(nn.Module):
    """Mean and log_std of each number of an action: dense from features, or log_std by itself.

    log_std = low + (high - low) * sigmoid(x), where x is an output of the layer, or a parameter

    Args:
        n_features: number of features.
        n_actions: number k of numbers of an action.
        has_own_std: whether log_std is a parameter of its own, the same in all states, as policies
            of PPO mostly have it; otherwise it depends on the features.
        initial_log_std: log_std before anything is learned.
        log_std_bounds: low and high.
        gain: factor of the first weights, which are orthogonal; None for torch's default.

    Raises:
        ValueError: the initial log_std does not lie between the bounds.

    Example:
        >>> head = GaussianHead(8, n_actions=2, has_own_std=True, initial_log_std=-0.5)
        >>> mean, log_std = head(torch.zeros(3, 8))
        >>> mean.shape, log_std[0]
        (torch.Size([3, 2]), tensor([-0.5000, -0.5000], grad_fn=<SelectBackward0>))
    """

    def __init__(
        self,
        n_features: int,
        n_actions: int,
        *,
        has_own_std: bool = False,
        initial_log_std: float = 0.0,
        log_std_bounds: tuple[float, float] = (-5.0, 2.0),
        gain: float | None = POLICY_GAIN,
    ) -> None:
        super().__init__()
        self._low, self._high = log_std_bounds
        if not -math.inf < self._low < initial_log_std < self._high < math.inf:
            raise ValueError(
                f"initial_log_std: got {initial_log_std}, expected a number between the bounds"
                f" {log_std_bounds}"
            )
        share = (initial_log_std - self._low) / (self._high - self._low)
        first = torch.full((n_actions,), math.log(share / (1 - share)))
        self.raw_std = nn.Parameter(first) if has_own_std else None
        self.layer = nn.Linear(n_features, n_actions if has_own_std else 2 * n_actions)
        if gain is not None:
            nn.init.orthogonal_(self.layer.weight, gain)
            nn.init.zeros_(self.layer.bias)
        if not has_own_std:
            with torch.no_grad():
                self.layer.bias[n_actions:] += first

    def forward(self, features: Tensor) -> GaussianParams:
        """Return mean and log_std [..., k] for features [..., n_features]."""
        outputs = self.layer(features)
        if self.raw_std is None:
            mean, raw = outputs.chunk(2, dim=-1)
        else:
            mean, raw = outputs, self.raw_std.expand_as(outputs)
        log_std = self._low + (self._high - self._low) * torch.sigmoid(raw)
        return GaussianParams(mean, log_std)
