"""SoftActorCritic: encoder, Gaussian policy and critics of actions, for `QPgAgent`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parllel.torch.distributions import GaussianParams
from parllel.torch.models.action_critics import ActionCritics
from parllel.torch.models.encoding import Encoding
from parllel.torch.models.gaussian_head import GaussianHead
from parllel.torch.models.mlp import Mlp


class SoftActorCritic(nn.Module):
    """A policy and critics of dense layers, on features of an encoder or on observations.

    Args:
        n_features: number of features of a row: that of the encoder, or, without one, of elements
            of an observation, whose axes are flattened. Integers are converted, and not scaled.
        n_actions: number of numbers of an action.
        sizes: width of each hidden layer of policy and critics.
        encoder: turns rows of observations into features [B, n_features]. `SAC` trains it by the
            critics' loss; the policy takes its features as they are.
        n_critics: number of critics.
        layer_norm: whether the results of hidden layers are normalized before the activation.
        initial_log_std: log_std of the policy before anything is learned.
        leaf: name of the leaf of an observation that the encoder takes, where observations are
            trees.
        autocast: dtype in which the encoder computes; None for that of its parameters.

    Raises:
        ValueError: there is an autocast without an encoder.

    Attributes:
        policy: features to `GaussianParams`.
        critic: features and actions to values [n_critics, B].

    Example:
        >>> from parllel.torch.models import NatureCnn
        >>> encoder = NatureCnn((3, 64, 64), n_features=50)
        >>> model = SoftActorCritic(50, n_actions=2, sizes=(32, 32), encoder=encoder)
        >>> frames = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
        >>> model(frames).mean.shape, model.critic(model.encode(frames), torch.zeros(4, 2)).shape
        (torch.Size([4, 2]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        n_features: int,
        n_actions: int,
        sizes: Sequence[int] = (256, 256),
        *,
        encoder: nn.Module | None = None,
        n_critics: int = 2,
        layer_norm: bool = False,
        initial_log_std: float = 0.0,
        leaf: str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if encoder is None and autocast is not None:
            raise ValueError("autocast: got a dtype, expected None where there is no encoder")
        before = nn.Identity() if encoder is None else encoder
        self.encoding = Encoding(before, n_features, leaf=leaf, autocast=autocast)
        hidden = Mlp(n_features, sizes, activation=torch.relu, layer_norm=layer_norm, gain=None)
        head = GaussianHead(hidden.n_features, n_actions, initial_log_std=initial_log_std)
        self.policy = nn.Sequential(hidden, head)
        self.critic = ActionCritics(
            n_features, n_actions, sizes, n_critics=n_critics, layer_norm=layer_norm
        )

    def encode(self, observation: Tensor | Mapping[str, Any]) -> Tensor:
        """Return features [B, ...] of observations."""
        return self.encoding.encode(observation)

    def forward(self, observation: Tensor | Mapping[str, Any]) -> GaussianParams:
        """Return mean and log_std [B, k] of the policy, float32."""
        params: GaussianParams = self.policy(self.encode(observation))
        return params
