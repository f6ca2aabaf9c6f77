"""Distribution: the protocol of what agents ask of a distribution of actions."""

from __future__ import annotations

from typing import Any, Protocol

from gymnasium import spaces
from torch import Tensor

from parllel.torch.distributions.action_map import ActionMap


class Distribution(Protocol):
    """A distribution of actions, as functions of what a model gives: no object for each step.

    Its parameters come in two forms. A model gives them as it likes (`DistParams`, or whatever
    `normalize` takes); `normalize` makes one tensor [..., *params_shape] of them, which all other
    methods take. Leading dimensions `...` are rows, and each method works on each row by itself,
    on the device of its arguments. Nothing waits for a device.

    Example:
        >>> import numpy as np, torch
        >>> class Normal:  # of k numbers, whose deviation is 1; actions are those of a Box
        ...     def __init__(self, k):
        ...         self.params_shape = (k,)
        ...     def normalize(self, dist_params, mask=None):
        ...         return dist_params
        ...     def sample(self, params, generator=None):
        ...         noise = torch.empty_like(params).normal_(generator=generator)
        ...         return params + noise
        ...     def mode(self, params):
        ...         return params
        ...     def log_prob(self, params, action):
        ...         return -0.5 * ((action - params) ** 2 + np.log(2 * np.pi)).sum(-1)
        ...     def entropy(self, params):
        ...         return torch.full_like(params, 0.5 * np.log(2 * np.pi * np.e)).sum(-1)
        ...     def kl(self, params, other):
        ...         return 0.5 * ((params - other) ** 2).sum(-1)
        ...     def map_actions(self, space, params):
        ...         if space.shape != self.params_shape:
        ...             raise ValueError(f"action space: got {space}")
        ...         return None
        >>> normal: Distribution = Normal(2)
        >>> normal.entropy(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    @property
    def params_shape(self) -> tuple[int, ...]:
        """The shape of one row of normalized parameters."""

    # Any: each distribution names the form in which a model gives parameters.
    def normalize(self, dist_params: Any, mask: Tensor | None = None) -> Tensor:
        """Return normalized parameters, float32 [..., *params_shape].

        Args:
            dist_params: parameters as the model gives them.
            mask: bool or integers, the actions that are allowed, where environments tell them.
        """

    def sample(self, params: Tensor, generator: Any = None) -> Tensor:
        """Draw an action for each row, [...] or [..., k].

        Args:
            params: normalized parameters.
            generator: torch.Generator on the device of `params`; torch's own by default.
        """

    def mode(self, params: Tensor) -> Tensor:
        """Return the most probable action of each row."""

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Return the log-probability (density) of one action in each row, float32 [...]."""

    def entropy(self, params: Tensor) -> Tensor:
        """Return the entropy of each row in nats, float32 [...]."""

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        """Return the KL divergence of `other` from `params` in nats, float32 [...].

        It is the mean of log p - log q over actions that `params` draws: KL(p || q).
        """

    def map_actions(self, space: spaces.Space[Any], params: Tensor) -> ActionMap | None:
        """Return what makes the space's actions of the distribution's own, and the reverse.

        Args:
            space: the space of a single environment's actions.
            params: normalized parameters of a few rows, on the device of actions.

        Returns:
            The map; None where the space's actions are the distribution's own.

        Raises:
            TypeError, ValueError: the space has other actions than the distribution.
        """


class ReparameterizedDistribution(Distribution, Protocol):
    """A distribution whose actions have gradients by its parameters, as SAC needs them.

    Example:
        >>> import torch
        >>> from parllel.torch.distributions import GaussianParams, SquashedGaussian
        >>> squashed: ReparameterizedDistribution = SquashedGaussian(1)
        >>> mean = torch.zeros(4, 1, requires_grad=True)
        >>> params = squashed.normalize(GaussianParams(mean, torch.zeros(4, 1)))
        >>> squashed.sample_with_log_prob(params)[0].requires_grad
        True
    """

    def sample_with_log_prob(self, params: Tensor, generator: Any = None) -> tuple[Tensor, Tensor]:
        """Draw actions [..., k], and return their log-probabilities [...], both with gradients.

        Args:
            params: normalized parameters.
            generator: torch.Generator on the device of `params`; torch's own by default.
        """
