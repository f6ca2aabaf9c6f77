"""Distribution: the protocol of what agents ask of a distribution of actions."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor


class Distribution(Protocol):
    """A distribution of actions, as functions of what a model gives: no object for each step.

    Its parameters come in two forms. A model gives them as it likes (`DistParams`, or whatever
    `normalize` takes); `normalize` makes one tensor [..., *params_shape] of them, which all other
    methods take. Leading dimensions `...` are rows, and each method works on each row by itself,
    on the device of its arguments. Nothing waits for a device.

    Example:
        >>> import torch
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
        ...     def first_action(self, space, params):
        ...         if space.shape != self.params_shape:
        ...             raise ValueError(f"action space: got {space}")
        ...         return 0
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

    def first_action(self, space: spaces.Space[Any], params: Tensor) -> int | NDArray[np.int64]:
        """Return the action of the environments' space that the distribution's 0 stands for.

        Args:
            space: the space of a single environment's actions.
            params: normalized parameters of a few rows.

        Raises:
            TypeError, ValueError: the space has other actions than the distribution.
        """
