"""Mlp: dense layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from parllel.torch.models.flat_rows import flat_rows
from parllel.torch.models.weights import RELU_GAIN, make_orthogonal


class Mlp(nn.Module):
    """Dense layers, each followed by an activation: rows of observations to features.

    Args:
        n_inputs: number of elements of an observation, whose axes are flattened. Integers are
            converted to floats, and not scaled.
        sizes: width of each layer.
        activation: a function of tensors, as `torch.tanh` or `torch.relu`.
        layer_norm: whether the results of each layer are normalized before the activation (Ba et
            al. 2016, arXiv:1607.06450).
        gain: factor of orthogonal weights; None for torch's default.

    Raises:
        ValueError: there is no layer.

    Attributes:
        n_features: number of features, the width of the last layer.

    Example:
        >>> encoder = Mlp(4, [64, 64], activation=torch.relu)
        >>> encoder(torch.zeros(2, 4)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        n_inputs: int,
        sizes: Sequence[int] = (64, 64),
        *,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        layer_norm: bool = False,
        gain: float | None = RELU_GAIN,
    ) -> None:
        super().__init__()
        if not sizes:
            raise ValueError("sizes: got none, expected the width of one layer or more")
        widths = [n_inputs, *sizes]
        self.layers = nn.ModuleList(map(nn.Linear, widths, sizes))
        self.norms = nn.ModuleList(map(nn.LayerNorm, sizes if layer_norm else ()))
        self.activation = activation
        self.n_inputs, self.n_features = n_inputs, widths[-1]
        make_orthogonal(self, gain)

    def forward(self, rows: Tensor) -> Tensor:
        """Return features [B, n_features]."""
        first: Tensor = self.layers[0].weight  # type: ignore[assignment]  # a list of any modules
        features = flat_rows(rows, self.n_inputs, first.dtype)
        for i, layer in enumerate(self.layers):
            features = layer(features)
            if self.norms:
                features = self.norms[i](features)
            features = self.activation(features)
        return features
