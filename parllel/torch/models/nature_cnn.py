"""NatureCnn: three convolutions and a dense layer, as DQN has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from parllel.torch.models.frame_conv import FrameConv, Order
from parllel.torch.models.normalizing import norm_and_relu
from parllel.torch.models.weights import RELU_GAIN, make_orthogonal

_LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel size and stride of each


class NatureCnn(nn.Module):
    """The network of DQN, up to its last layer: frames to features.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning", doi
    10.1038/nature14236, Methods, model architecture.

    Args:
        frame_shape: shape of a frame, or of a stack of them: at least 36 by 36.
        n_features: width of the dense layer; None leaves it out, and the features are those of the
            last convolution, 3,136 for 84 by 84.
        order: the order of a frame's axes: "CHW" or "HWC".
        layer_norm: whether the results of each layer are normalized before the ReLU: over all
            values of a row, with a scale and an offset for each channel.
        channels_last: whether torch's memory format `channels_last` is used inside.
        gain: factor of orthogonal weights; None for torch's default.

    Raises:
        ValueError: frames are too small for the layers, or have not 3 axes.

    Attributes:
        n_features: number of features.

    Example:
        >>> encoder = NatureCnn((4, 84, 84))
        >>> encoder(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        n_features: int | None = 512,
        *,
        order: Order = "CHW",
        layer_norm: bool = False,
        channels_last: bool = False,
        gain: float | None = RELU_GAIN,
    ) -> None:
        super().__init__()
        (n_first, *first), *others = _LAYERS
        frame_conv = FrameConv(
            frame_shape, n_first, *first, order=order, channels_last=channels_last
        )
        height, width = frame_conv.height, frame_conv.width
        for _, kernel, stride in _LAYERS:
            height, width = ((side - kernel) // stride + 1 for side in (height, width))
            if height < 1 or width < 1:
                raise ValueError(
                    f"frame_shape: got {tuple(frame_shape)} as {order}, expected frames of 36 by 36"
                    " or more; resize them, or use ImpalaCnn"
                )
        layers: list[nn.Module] = [frame_conv]
        n_channels = n_first
        layers += norm_and_relu(n_channels, layer_norm)
        for n_out, kernel, stride in others:
            layers.append(nn.Conv2d(n_channels, n_out, kernel, stride))
            layers += norm_and_relu(n_out, layer_norm)
            n_channels = n_out
        layers.append(nn.Flatten())
        self.n_features = n_channels * height * width
        if n_features is not None:
            layers.append(nn.Linear(self.n_features, n_features))
            layers += norm_and_relu(n_features, layer_norm)
            self.n_features = n_features
        self.layers = nn.Sequential(*layers)
        make_orthogonal(self, gain)
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it

    def forward(self, frames: Tensor) -> Tensor:
        """Return features [B, n_features] of frames of uint8, bool or floats."""
        features: Tensor = self.layers(frames)
        return features
