"""What distributions of Gaussian variables share: their parameters, and how they are drawn."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG_SQRT_2_PI = 0.5 * math.log(2 * math.pi)


class GaussianParams(NamedTuple):
    """The parameters of k independent Gaussian variables, as a model gives them.

    Args:
        mean: float32 [..., k].
        log_std: float32 [..., k], natural logarithms of the standard deviations.

    Example:
        >>> GaussianParams(torch.zeros(2, 3), torch.full((2, 3), -0.5)).mean.shape
        torch.Size([2, 3])
    """

    mean: Tensor
    log_std: Tensor


class DiagonalGaussian:
    """k independent Gaussian variables, of which a distribution of actions is made.

    Normalized parameters are mean and log_std in one tensor [..., 2, k].

    Args:
        dim: the number k.

    Raises:
        ValueError: dim is less than 1.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim: got {dim}, expected 1 or more")
        self.dim = dim

    @property
    def params_shape(self) -> tuple[int, int]:
        """The shape of one row of normalized parameters, (2, k)."""
        return 2, self.dim

    def normalize(self, dist_params: GaussianParams, mask: Tensor | None = None) -> Tensor:
        """Return mean and log_std as one tensor, float32 [..., 2, k].

        Raises:
            TypeError: the model gives no `GaussianParams`.
            ValueError: one has another shape than [..., k]; or there is a mask of actions, which
                are no choices here.
        """
        if not isinstance(dist_params, GaussianParams):
            raise TypeError(
                f"dist_params: got a {type(dist_params).__name__}, expected"
                " GaussianParams(mean=..., log_std=...)"
            )
        if mask is not None:
            raise ValueError(
                "action_mask: got one, expected none: actions are numbers, not choices"
            )
        mean, log_std = dist_params
        if mean.shape[-1:] != (self.dim,) or log_std.shape != mean.shape:
            raise ValueError(
                f"dist_params: mean {tuple(mean.shape)} and log_std {tuple(log_std.shape)},"
                f" expected (..., {self.dim}) of both; a log_std for all rows is expanded to them"
            )
        return torch.stack([mean, log_std], dim=-2)


def draw(params: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return Gaussian variables [..., k] with a gradient by the parameters, and their noise."""
    mean, log_std = params.unbind(-2)
    noise = torch.empty_like(mean).normal_(generator=generator)
    return mean + log_std.exp() * noise, noise


def log_density(params: Tensor, variable: Tensor) -> Tensor:
    """Return log N(x; mean, std**2) of each variable, float32 [..., k]."""
    mean, log_std = params.unbind(-2)
    z = (variable - mean) * (-log_std).exp()
    return -0.5 * z * z - log_std - LOG_SQRT_2_PI


def divergence(params: Tensor, other: Tensor) -> Tensor:
    """Return KL(p || q) of the Gaussians in nats, float32 [...]: the sum over all variables.

    Source: Kullback 1959, "Information theory and statistics", chapter 9, for one variable:
        log(s_q / s_p) + (s_p**2 + (m_p - m_q)**2) / (2 * s_q**2) - 1 / 2.
    """
    (mean, log_std), (other_mean, other_log_std) = params.unbind(-2), other.unbind(-2)
    log_ratio = log_std - other_log_std
    z = (mean - other_mean) * (-other_log_std).exp()
    # expm1: of two that are alike, the terms cancel without a rounding of 1.
    return (0.5 * (torch.expm1(2 * log_ratio) + z * z) - log_ratio).sum(dim=-1)


def log_ndtr(z: Tensor) -> Tensor:
    """Return log Phi(z), Phi being the distribution function of the standard normal variable.

    The slope of `torch.special.log_ndtr` in float32 is off by a share of 0.001 where z is -150, and
    by 176 times itself where z is -20,000 (`test_slopes_of_tails`). Here exp(-z**2 / 2), which is
    what gets lost there, is a factor of its own: Phi(z) = exp(-z**2 / 2) * erfcx(-z / sqrt(2)) / 2.
    """
    low, high = z.clamp(max=0) * math.sqrt(0.5), z.clamp(min=0) * math.sqrt(0.5)
    tail = (0.5 * torch.special.erfcx(-low)).log() - low * low
    return torch.where(z < 0, tail, torch.log1p(-0.5 * torch.erfc(high)))
