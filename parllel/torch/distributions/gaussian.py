"""Gaussian: actions of any size, each number drawn from a normal distribution of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from parllel.torch.distributions.action_map import ActionMap
from parllel.torch.distributions.box_scale import check_box
from parllel.torch.distributions.diagonal_gaussian import (
    LOG_SQRT_2_PI,
    DiagonalGaussian,
    divergence,
    draw,
    log_density,
)


class Gaussian(DiagonalGaussian):
    """k independent normal variables as the numbers of an action, without bounds.

    Its actions are those of a Box without bounds; `gymnasium.wrappers.ClipAction` makes such a
    space of any, and clips what environments get. Where the space has bounds, `ClippedGaussian` or
    `SquashedGaussian` know of them.

    Args:
        dim: the number k.

    Raises:
        ValueError: dim is less than 1.

    Example:
        >>> from parllel.torch.distributions import GaussianParams
        >>> gaussian = Gaussian(2)
        >>> params = gaussian.normalize(GaussianParams(torch.tensor([[3.0, 4]]), torch.zeros(1, 2)))
        >>> gaussian.mode(params)
        tensor([[3., 4.]])
        >>> gaussian.log_prob(params, torch.tensor([[3.0, 4]]))  # - log(2 pi)
        tensor([-1.8379])
    """

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw an action for each row, float32 [..., k]."""
        return draw(params, generator)[0]

    def sample_with_log_prob(
        self, params: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw actions [..., k] and return their log-probabilities [...], both with gradients.

        Gradients by the parameters go through the action (Kingma and Welling 2014,
        arXiv:1312.6114, section 2.4).
        """
        action, noise = draw(params, generator)
        return action, (-0.5 * noise * noise - params[..., 1, :] - LOG_SQRT_2_PI).sum(dim=-1)

    def mode(self, params: Tensor) -> Tensor:
        """Return the mean."""
        return params[..., 0, :]

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Return the log-density of one action in each row, float32 [...]."""
        return log_density(params, action).sum(dim=-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Return the differential entropy of each row in nats, float32 [...].

        It is the sum of 1/2 log(2 pi e) + log_std.
        """
        return (params[..., 1, :] + (0.5 + LOG_SQRT_2_PI)).sum(dim=-1)

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        """Return KL(params || other) of each row in nats, float32 [...]."""
        return divergence(params, other)

    def map_actions(self, space: spaces.Space[Any], params: Tensor) -> ActionMap | None:
        """Return None: the space's actions are the distribution's own.

        Raises:
            TypeError: the space is no Box of 32-bit or 64-bit floats.
            ValueError: it has another shape, or a bound.
        """
        box = check_box(space, self.dim)
        if np.isfinite(box.low).any() or np.isfinite(box.high).any():
            raise ValueError(
                f"action space: got {space}, expected a Box without bounds, which a Gaussian would"
                " leave; use ClippedGaussian or SquashedGaussian, or wrap the environment in"
                " gymnasium.wrappers.ClipAction"
            )
        if box.dtype == np.float16:  # the log-probability would be that of another action
            raise TypeError(f"action space: got {space}, expected floats of 32 or 64 bits")
        return None
