"""ActorCritic: an encoder with a policy and a value on top, for `PgAgent`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parllel.torch.agents import ModelOutputs
from parllel.torch.distributions import DistParams
from parllel.torch.models.encoding import Encoding

POLICY_GAIN = 0.01
"""The first policy takes all actions with almost the same probability (see weights.py)."""
VALUE_GAIN = 1.0


class ActorCritic(Encoding):
    """Two dense heads over the features of one encoder: logits of actions, and a value.

    Both heads are one matrix product. Their first weights are orthogonal, each head's for itself.

    Args:
        encoder: turns rows into features [B, n_features], as `NatureCnn` or any `nn.Module`.
        n_logits: number of logits, that of actions for a `Categorical`.
        n_features: number of features; by default what the encoder calls so.
        policy_gain, value_gain: factors of the heads' first weights.
        leaf: name of the leaf of an observation that the encoder takes, where observations are
            trees, as those with an `action_mask` are.
        autocast: dtype in which the encoder computes, `torch.bfloat16` as a rule; None for that of
            its parameters. Features and heads are float32 in any case.

    Raises:
        TypeError: the encoder does not say how many features it has.

    Example:
        >>> from parllel.torch.models import Mlp
        >>> model = ActorCritic(Mlp(4), n_logits=2)
        >>> outputs = model(torch.zeros(3, 4))
        >>> outputs.dist_params.logits.shape, outputs.value.shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        n_logits: int,
        *,
        n_features: int | None = None,
        policy_gain: float = POLICY_GAIN,
        value_gain: float = VALUE_GAIN,
        leaf: str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(encoder, n_features, leaf=leaf, autocast=autocast)
        self.heads = nn.Linear(self.n_features, n_logits + 1)  # the last one is the value
        with torch.no_grad():
            nn.init.orthogonal_(self.heads.weight[:-1], policy_gain)
            nn.init.orthogonal_(self.heads.weight[-1:], value_gain)
            nn.init.zeros_(self.heads.bias)

    def forward(self, observation: Tensor | Mapping[str, Any]) -> ModelOutputs:
        """Return logits [B, n_logits] and values [B], float32."""
        outputs = self.heads(self.encode(observation))
        return ModelOutputs(DistParams(logits=outputs[:, :-1]), value=outputs[:, -1])
