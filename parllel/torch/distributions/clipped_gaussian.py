"""ClippedGaussian: normal variables that are cut off at bounds, which have a mass of their own."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from parllel.torch.distributions.action_map import ActionMap
from parllel.torch.distributions.box_scale import BoxScale
from parllel.torch.distributions.diagonal_gaussian import (
    LOG_SQRT_2_PI,
    DiagonalGaussian,
    draw,
    log_density,
    log_ndtr,
)


class ClippedGaussian(DiagonalGaussian):
    """k independent normal variables, clipped to [-1, 1] and scaled to the bounds of a Box.

    A number between the bounds has the density of the normal variable. A bound itself has the
    probability with which the variable lies there or beyond:

        P(-1) = Phi((-1 - mean) / std),  P(1) = Phi((mean - 1) / std)

    So the sample tree has the actions that environments take, and nothing depends on how far
    beyond a bound a variable was: policy gradients have the same mean and less variance than those
    of the variables. Entropies and divergences are those of this mixture.

    Args:
        dim: the number k.

    Raises:
        ValueError: dim is less than 1.

    Source: Fujita and Maeda 2018, "Clipped action policy gradient", arXiv:1802.07564, section 4.

    Example:
        >>> from parllel.torch.distributions import GaussianParams
        >>> clipped = ClippedGaussian(1)
        >>> params = clipped.normalize(GaussianParams(torch.tensor([[1.0]]), torch.zeros(1, 1)))
        >>> clipped.log_prob(params, torch.tensor([[1.0]])).exp()  # half of them lie beyond
        tensor([0.5000])
    """

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw an action for each row, float32 [..., k] in [-1, 1]."""
        return draw(params, generator)[0].clamp(-1, 1)

    def mode(self, params: Tensor) -> Tensor:
        """Return the mean, clipped."""
        return params[..., 0, :].clamp(-1, 1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Return the log-density of one action in each row; that of bounds is of a probability.

        Args:
            params: normalized parameters.
            action: float [..., k] in [-1, 1].

        Returns:
            float32 [...], the sum over all numbers.
        """
        below, above = _bounds(params)
        log_below, log_above = log_ndtr(below), log_ndtr(-above)
        inside = log_density(params, action)
        each = torch.where(action <= -1, log_below, torch.where(action >= 1, log_above, inside))
        return each.sum(dim=-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Return the entropy of each row in nats, float32 [...], of densities and probabilities.

        It is -sum P log P over both bounds, and the integral of -p log p between them.
        """
        below, above = _bounds(params)
        mass, _, square = _moments(below, above)
        total = (params[..., 1, :] + LOG_SQRT_2_PI) * mass + 0.5 * square
        for each in (below, -above):
            log_p = log_ndtr(each)
            total = total - log_p.exp() * log_p
        return total.sum(dim=-1)

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        """Return KL(params || other) of each row in nats, float32 [...]."""
        (below, above), (other_below, other_above) = _bounds(params), _bounds(other)
        (mean, log_std), (other_mean, other_log_std) = params.unbind(-2), other.unbind(-2)
        mass, first, square = _moments(below, above)
        # Of a variable z of mean 0 and deviation 1, the other one's is shift + ratio * z.
        shift = (mean - other_mean) * (-other_log_std).exp()
        ratio = (log_std - other_log_std).exp()
        other_square = shift * shift * mass + 2 * shift * ratio * first + ratio * ratio * square
        total = (other_log_std - log_std) * mass + 0.5 * (other_square - square)
        for each, its_other in ((below, other_below), (-above, -other_above)):
            log_p, log_q = log_ndtr(each), log_ndtr(its_other)
            total = total + log_p.exp() * (log_p - log_q)
        return total.sum(dim=-1)

    def map_actions(self, space: spaces.Space[Any], params: Tensor) -> ActionMap:
        """Return the scale between [-1, 1] and the bounds of a Box.

        Raises:
            TypeError, ValueError: as `BoxScale`.
        """
        return BoxScale(space, self.dim, params.device)


def _bounds(params: Tensor) -> tuple[Tensor, Tensor]:
    """Return both bounds in deviations from the mean, (-1 - mean) / std and (1 - mean) / std."""
    mean, log_std = params.unbind(-2)
    rate = (-log_std).exp()
    return (-1 - mean) * rate, (1 - mean) * rate


def _moments(below: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the integrals of 1, z and z**2 times the normal density, between two bounds."""
    upper_tail = below > 0  # where both are close to 1, the difference of the tails is exact
    low, high = torch.where(upper_tail, -above, below), torch.where(upper_tail, -below, above)
    mass = torch.special.ndtr(high) - torch.special.ndtr(low)
    at_below, at_above = ((-0.5 * z * z - LOG_SQRT_2_PI).exp() for z in (below, above))
    return mass, at_below - at_above, mass + below * at_below - above * at_above
