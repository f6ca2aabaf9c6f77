"""ActionCritics: some networks that estimate the value of an action, computed together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from parllel.torch.models.flat_rows import flat_rows


class ActionCritics(nn.Module):
    """Networks of dense layers Q_i(features, action), which share no parameter.

    A layer of all networks is one batched product.

    Args:
        n_features: number of features of a row, whose axes are flattened.
        n_actions: number of numbers of an action.
        sizes: width of each hidden layer.
        n_critics: number of networks.
        activation: a function of tensors.
        layer_norm: whether the results of each hidden layer are normalized before the activation,
            without a scale or an offset (Ba et al. 2016, arXiv:1607.06450).

    Raises:
        ValueError: there is no network.

    Example:
        >>> critics = ActionCritics(3, n_actions=1, sizes=(64, 64))
        >>> critics(torch.zeros(5, 3), torch.zeros(5, 1)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        n_features: int,
        n_actions: int,
        sizes: Sequence[int] = (256, 256),
        *,
        n_critics: int = 2,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if n_critics < 1:
            raise ValueError(f"n_critics: got {n_critics}, expected 1 or more")
        widths = [n_features + n_actions, *sizes, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for n_in, n_out in itertools.pairwise(widths):
            bound = 1 / math.sqrt(n_in)  # as nn.Linear has it
            self.weights.append(torch.empty(n_critics, n_in, n_out).uniform_(-bound, bound))
            self.biases.append(torch.empty(n_critics, 1, n_out).uniform_(-bound, bound))
        self.n_features, self.n_actions = n_features, n_actions
        self.activation, self._layer_norm = activation, layer_norm

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """Return values [n_critics, B] of features [B, ...] and actions [B, k].

        Raises:
            ValueError: rows have another number of features or of an action's numbers.
        """
        rows = flat_rows(features, self.n_features, self.weights[0].dtype)
        if action.shape != (len(rows), self.n_actions):
            raise ValueError(
                f"action: got {tuple(action.shape)}, expected ({len(rows)}, {self.n_actions})"
            )
        hidden = torch.cat([rows, action.to(rows.dtype)], dim=-1)
        hidden = hidden.expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if i < last:
                if self._layer_norm:
                    hidden = nn.functional.layer_norm(hidden, hidden.shape[-1:])
                hidden = self.activation(hidden)
        return hidden.squeeze(-1)
