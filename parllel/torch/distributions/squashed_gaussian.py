"""SquashedGaussian: the hyperbolic tangent of normal variables, for actions with bounds."""

from __future__ import annotations

import math
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from parllel.torch.distributions.action_map import ActionMap
from parllel.torch.distributions.box_scale import BoxScale
from parllel.torch.distributions.diagonal_gaussian import (
    LOG_SQRT_2_PI,
    DiagonalGaussian,
    divergence,
    draw,
    log_density,
    log_ndtr,
)

_LARGEST = 1 - 2**-24  # the largest float32 below 1
_N_TERMS = 12  # of an alternating series: the error is below 2 log(2) * (3 + sqrt(8))**-12


class SquashedGaussian(DiagonalGaussian):
    """tanh of k independent normal variables: actions in (-1, 1), scaled to the bounds of a Box.

    log p(a) = sum_i [log N(x_i; mean_i, std_i**2) - log(1 - tanh(x_i)**2)],  a = tanh(x)

    Log-probabilities and entropies are densities of the action in [-1, 1], whatever the bounds of
    the environment's space (`BoxScale` scales to them).

    In float32, tanh(x) is 1 where x is 9.02 or more. Such an action counts as the largest number
    below 1, so that its log-probability and gradient are finite; `sample_with_log_prob` does not
    go back from the action to x, and is exact there, too.

    Args:
        dim: the number k.

    Raises:
        ValueError: dim is less than 1.

    Source: Haarnoja et al. 2018, arXiv:1812.05905, appendix C, eq. 26.

    Example:
        >>> from parllel.torch.distributions import GaussianParams
        >>> squashed = SquashedGaussian(1)
        >>> params = squashed.normalize(GaussianParams(torch.tensor([[20.0]]), torch.zeros(1, 1)))
        >>> action, log_prob = squashed.sample_with_log_prob(params)
        >>> action, log_prob.isfinite(), squashed.log_prob(params, action).isfinite()
        (tensor([[1.]]), tensor([True]), tensor([True]))
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        factors = [factor / k for k, factor in enumerate(_factors(_N_TERMS), start=1)]
        self._series = torch.tensor([[2.0 * k for k in range(1, _N_TERMS + 1)], factors])

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw an action for each row, float32 [..., k] in [-1, 1]."""
        return draw(params, generator)[0].tanh()

    def sample_with_log_prob(
        self, params: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw actions [..., k] and return their log-probabilities [...], both with gradients.

        Gradients by the parameters go through the action (Kingma and Welling 2014,
        arXiv:1312.6114, section 2.4).
        """
        variable, noise = draw(params, generator)
        density = -0.5 * noise * noise - params[..., 1, :] - LOG_SQRT_2_PI
        return variable.tanh(), (density - _log_slope(variable)).sum(dim=-1)

    def mode(self, params: Tensor) -> Tensor:
        """Return tanh of the mean: the median of each number, which is taken for the mode."""
        return params[..., 0, :].tanh()

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Return the log-density of one action in each row, float32 [...].

        Args:
            params: normalized parameters.
            action: [..., k] in [-1, 1]; bounds count as the nearest float32 inside of them.
        """
        variable = action.clamp(-_LARGEST, _LARGEST).atanh()
        return (log_density(params, variable) - _log_slope(variable)).sum(dim=-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Return the differential entropy of each row in nats, float32 [...].

        It is that of the normal variables, and the mean of log(1 - tanh(x)**2) =
        2 log(2) - 2 |x| - 2 log(1 + exp(-2 |x|)). The last term is a series of exp(-2 k |x|), whose
        means are known; it alternates, and 12 terms are enough.

        Source: Cohen, Rodriguez Villegas and Zagier 2000, "Convergence acceleration of alternating
            series", algorithm 1.
        Error: <= 1e-5 * (1 + std + |mean|) for each number (`test_squashed_entropy`).
        """
        if self._series.device != params.device:  # moved once
            self._series = self._series.to(params.device)
        mean, log_std = params.unbind(-2)
        std = log_std.exp()
        z = mean / std
        size = std * math.sqrt(2 / math.pi) * (-0.5 * z * z).exp()
        size = size + mean * torch.special.erf(z * math.sqrt(0.5))  # the mean of |x|
        slope = 2 * math.log(2) - 2 * size - 2 * _mean_log1p(mean, std, *self._series)
        total: Tensor = log_std + (0.5 + LOG_SQRT_2_PI) + slope
        return total.sum(dim=-1)

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        """Return KL(params || other) of each row in nats, float32 [...].

        It is that of the normal variables: a map that can be undone does not change it.
        """
        return divergence(params, other)

    def map_actions(self, space: spaces.Space[Any], params: Tensor) -> ActionMap:
        """Return the scale between [-1, 1] and the bounds of a Box.

        Raises:
            TypeError, ValueError: as `BoxScale`.
        """
        return BoxScale(space, self.dim, params.device)


def _log_slope(variable: Tensor) -> Tensor:
    """Return log(1 - tanh(x)**2), exact where tanh(x) is 1 in float32."""
    return 2 * (math.log(2) - variable - torch.nn.functional.softplus(-2 * variable))


def _mean_log1p(mean: Tensor, std: Tensor, rates: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of log(1 + exp(-2 |x|)) of normal variables x.

    It is the sum over k = 1, 2, ... of (-1)**(k + 1) / k * E[exp(-2 k |x|)], where
    E[exp(-s x); x > 0] = exp(-s mean + (s std)**2 / 2) * Phi(mean / std - s std).

    Args:
        mean, std: [..., k].
        rates: the numbers s = 2 k of all terms.
        weights: the terms' factors.
    """
    both = torch.stack([mean, -mean], dim=-1).unsqueeze(-1)  # of x > 0, and of x < 0
    std = std.unsqueeze(-1).unsqueeze(-1)
    z, reach = both / std, rates * std
    near = torch.minimum(reach, z)
    log_terms = 0.5 * near * near - rates * both + log_ndtr(z - near)
    # Behind the mean, (s std)**2 / 2 is a part of Phi's logarithm, too: they cancel in writing.
    beyond = (reach - z).clamp(min=0) * math.sqrt(0.5)
    log_tails = (0.5 * torch.special.erfcx(beyond)).log() - 0.5 * z * z
    terms = torch.where(reach < z, log_terms, log_tails).exp()
    return (weights * terms).sum(dim=(-1, -2))


def _factors(n: int) -> list[float]:
    """Return the factors of n terms a_1, a_2, ... whose sum is a_1 - a_2 + a_3 - ..."""
    d = ((3 + math.sqrt(8)) ** n + (3 - math.sqrt(8)) ** n) / 2
    factors, b, c = [], -1.0, -d
    for k in range(n):
        c = b - c
        factors.append(c / d)
        b *= (k + n) * (k - n) / ((k + 0.5) * (k + 1))
    return factors
