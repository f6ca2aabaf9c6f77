"""QNetwork: an encoder with the values of all actions on top, for `QAgent`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parllel.torch.models.encoding import Encoding


class DuelingHead(nn.Module):
    """Action values as the value of the state and the advantage of each action.

    Q[b, a] = V[b] + A[b, a] - mean(A[b, a'] for all actions a')

    Both are a dense layer with a ReLU and another one.

    Source: Wang et al. 2016, arXiv:1511.06581, eq. 9.

    Args:
        n_features: number of features of a row.
        n_actions: number of actions.
        n_hidden: width of the two dense layers.

    Example:
        >>> DuelingHead(64, n_actions=3)(torch.zeros(2, 64)).shape
        torch.Size([2, 3])
    """

    def __init__(self, n_features: int, n_actions: int, n_hidden: int = 512) -> None:
        super().__init__()
        self.hidden = nn.Linear(n_features, 2 * n_hidden)  # one product for both
        self.value = nn.Linear(n_hidden, 1)
        self.advantage = nn.Linear(n_hidden, n_actions)

    def forward(self, features: Tensor) -> Tensor:
        """Return the values of all actions [B, n_actions] for features [B, n_features]."""
        of_value, of_advantage = torch.relu(self.hidden(features)).chunk(2, dim=-1)
        advantage = self.advantage(of_advantage)
        values: Tensor = self.value(of_value) + advantage - advantage.mean(dim=-1, keepdim=True)
        return values


class QNetwork(Encoding):
    """The values of all actions, from the features of an encoder.

    Args:
        encoder: turns rows into features [B, n_features], as `NatureCnn` or any `nn.Module`.
        n_actions: number of actions.
        n_features: number of features; by default what the encoder calls so.
        dueling: whether the head is a `DuelingHead`, or else one dense layer. In the paper it
            stands in the place of the encoder's dense layer: `NatureCnn(..., n_features=None)`.
        n_hidden: width of the layers of a dueling head.
        leaf: name of the leaf of an observation that the encoder takes, where observations are
            trees, as those with an `action_mask` are.
        autocast: dtype in which the encoder computes, `torch.bfloat16` as a rule; None for that of
            its parameters. Features and the head are float32 in any case.

    Raises:
        TypeError: the encoder does not say how many features it has.

    Example:
        >>> from parllel.torch.models import NatureCnn
        >>> model = QNetwork(NatureCnn((4, 84, 84), n_features=None), n_actions=6, dueling=True)
        >>> model(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
        torch.Size([2, 6])
    """

    def __init__(
        self,
        encoder: nn.Module,
        n_actions: int,
        *,
        n_features: int | None = None,
        dueling: bool = False,
        n_hidden: int = 512,
        leaf: str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(encoder, n_features, leaf=leaf, autocast=autocast)
        self.head = (
            DuelingHead(self.n_features, n_actions, n_hidden)
            if dueling
            else nn.Linear(self.n_features, n_actions)
        )

    def forward(self, observation: Tensor | Mapping[str, Any]) -> Tensor:
        """Return the values of all actions, float32 [B, n_actions]."""
        values: Tensor = self.head(self.encode(observation))
        return values
