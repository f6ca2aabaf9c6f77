"""What stands between two layers: a normalization, if it is wanted, and a ReLU."""

from __future__ import annotations

from torch import nn


def norm_and_relu(n_channels: int, layer_norm: bool) -> list[nn.Module]:
    """Return the layers that follow on a convolution or a dense layer.

    One group of channels is layer normalization (Ba et al. 2016, arXiv:1607.06450) with a scale
    and an offset for each channel, and reads memory in the format channels_last as it is.
    """
    return [nn.GroupNorm(1, n_channels), nn.ReLU()] if layer_norm else [nn.ReLU()]
