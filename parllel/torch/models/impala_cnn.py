"""ImpalaCnn: the residual network of IMPALA, up to its last layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from parllel.torch.models.frame_conv import FrameConv, Order
from parllel.torch.models.normalizing import norm_and_relu
from parllel.torch.models.weights import RELU_GAIN, make_orthogonal


class ImpalaCnn(nn.Module):
    """Three sections of a convolution, a maximum and two residual blocks: frames to features.

    Each section halves height and width.

    Source: Espeholt et al. 2018, arXiv:1802.01561, figure 3, right, without its LSTM.

    Args:
        frame_shape: shape of a frame, or of a stack of them.
        n_features: width of the dense layer at the end.
        channels: number of channels of each section.
        width: factor of `channels`.
        order: the order of a frame's axes: "CHW" or "HWC".
        layer_norm: whether the results of each layer but the second of a residual block are
            normalized: over all values of a row, with a scale and an offset for each channel.
        channels_last: whether torch's memory format `channels_last` is used inside.
        gain: factor of orthogonal weights; None for torch's default.

    Raises:
        ValueError: frame_shape has not 3 axes, there are no channels, or width is less than 1.

    Attributes:
        n_features: number of features.

    Example:
        >>> encoder = ImpalaCnn((40, 40, 3), order="HWC", width=2)
        >>> encoder(torch.zeros(2, 40, 40, 3, dtype=torch.uint8)).shape
        torch.Size([2, 256])
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        n_features: int = 256,
        *,
        channels: Sequence[int] = (16, 32, 32),
        width: int = 1,
        order: Order = "CHW",
        layer_norm: bool = False,
        channels_last: bool = False,
        gain: float | None = RELU_GAIN,
    ) -> None:
        super().__init__()
        if width < 1 or not channels:
            raise ValueError(
                f"channels, width: got {tuple(channels)}, {width}, expected one number or more, and"
                " a factor of 1 or more"
            )
        n_first, *others = (width * n_channels for n_channels in channels)
        frame_conv = FrameConv(
            frame_shape, n_first, 3, padding=1, order=order, channels_last=channels_last
        )
        n_channels, sides = n_first, [frame_conv.height, frame_conv.width]
        layers: list[nn.Module] = [frame_conv, *_after_conv(n_first, layer_norm)]
        for n_out in others:
            layers.append(nn.Conv2d(n_channels, n_out, 3, padding=1))
            layers += _after_conv(n_out, layer_norm)
            n_channels = n_out
        for _ in channels:
            sides = [(side + 1) // 2 for side in sides]
        layers += [nn.ReLU(), nn.Flatten()]
        layers.append(nn.Linear(n_channels * sides[0] * sides[1], n_features))
        layers += norm_and_relu(n_features, layer_norm)
        self.layers = nn.Sequential(*layers)
        self.n_features = n_features
        make_orthogonal(self, gain)
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it

    def forward(self, frames: Tensor) -> Tensor:
        """Return features [B, n_features] of frames of uint8, bool or floats."""
        features: Tensor = self.layers(frames)
        return features


def _after_conv(n_channels: int, layer_norm: bool) -> list[nn.Module]:
    """Return what follows on the first convolution of a section."""
    norm: list[nn.Module] = [nn.GroupNorm(1, n_channels)] if layer_norm else []
    blocks = [_Residual(n_channels, layer_norm) for _ in range(2)]
    return [*norm, nn.MaxPool2d(3, stride=2, padding=1), *blocks]


class _Residual(nn.Module):
    """Two convolutions that are added to what they are given."""

    def __init__(self, n_channels: int, layer_norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(n_channels, n_channels, 3, padding=1),
            *norm_and_relu(n_channels, layer_norm),
            nn.Conv2d(n_channels, n_channels, 3, padding=1),
        )

    def forward(self, rows: Tensor) -> Tensor:
        added: Tensor = rows + self.layers(rows)
        return added
