"""The first values of a network's weights, as implementations of PPO choose them."""

from __future__ import annotations

import math

from torch import nn

RELU_GAIN = math.sqrt(2)
"""The gain that keeps the size of values through layers with a ReLU; it is used for tanh, too."""


def make_orthogonal(network: nn.Module, gain: float | None) -> None:
    """Give all linear and convolutional layers orthogonal weights, and biases of 0.

    Source: Saxe et al. 2014, arXiv:1312.6120; with these gains in PPO: Huang et al. 2022, "The 37
    implementation details of proximal policy optimization", detail 2.

    Args:
        network: the layers, changed in place.
        gain: factor of the weights; None leaves the weights as torch made them.
    """
    if gain is None:
        return
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
