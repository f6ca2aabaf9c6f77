"""GaussianActorCritic: a Gaussian policy and a value on encoders, for `PgAgent`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parllel.torch.agents import ModelOutputs
from parllel.torch.models.actor_critic import POLICY_GAIN, VALUE_GAIN
from parllel.torch.models.encoding import Encoding
from parllel.torch.models.gaussian_head import GaussianHead


class GaussianActorCritic(nn.Module):
    """A `GaussianHead` and a value, over the features of one encoder or of one each.

    It is for `PgAgent` with a `Gaussian`, `ClippedGaussian` or `SquashedGaussian`.

    Args:
        encoder: turns rows into features [B, n_features], as `Mlp` or any `nn.Module` that tells
            its `n_features`.
        n_actions: number of numbers of an action.
        value_encoder: a second one, for the value; by default that of the policy.
        n_features: number of the encoder's features; by default what the encoder calls so. With
            `nn.Identity()` as encoder, the model is a head of a `RecurrentNetwork`.
        has_own_std, initial_log_std: as for `GaussianHead`.
        policy_gain, value_gain: factors of the heads' first weights.
        leaf: name of the leaf of an observation that encoders take, where observations are trees.
        autocast: dtype in which encoders compute; None for that of their parameters.

    Raises:
        TypeError: an encoder does not say how many features it has.

    Example:
        >>> from parllel.torch.models import Mlp
        >>> model = GaussianActorCritic(Mlp(3), n_actions=2, value_encoder=Mlp(3))
        >>> outputs = model(torch.zeros(5, 3))
        >>> outputs.dist_params.mean.shape, outputs.value.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        n_actions: int,
        *,
        value_encoder: nn.Module | None = None,
        n_features: int | None = None,
        has_own_std: bool = True,
        initial_log_std: float = 0.0,
        policy_gain: float = POLICY_GAIN,
        value_gain: float = VALUE_GAIN,
        leaf: str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.encoding = Encoding(encoder, n_features, leaf=leaf, autocast=autocast)
        self.value_encoding = (
            None if value_encoder is None else Encoding(value_encoder, leaf=leaf, autocast=autocast)
        )
        self.policy = GaussianHead(
            self.encoding.n_features,
            n_actions,
            has_own_std=has_own_std,
            initial_log_std=initial_log_std,
            gain=policy_gain,
        )
        self.critic = nn.Linear((self.value_encoding or self.encoding).n_features, 1)
        nn.init.orthogonal_(self.critic.weight, value_gain)
        nn.init.zeros_(self.critic.bias)

    def forward(self, observation: Tensor | Mapping[str, Any]) -> ModelOutputs:
        """Return mean and log_std [B, k] and values [B], float32."""
        features = self.encoding.encode(observation)
        own = self.value_encoding
        value = self.critic(features if own is None else own.encode(observation))
        return ModelOutputs(self.policy(features), value=value.squeeze(-1))
