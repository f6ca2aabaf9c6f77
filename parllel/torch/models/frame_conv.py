"""FrameConv: the first convolution of a network for frames; it scales bytes and orders axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Order = Literal["CHW", "HWC"]
"""The order of a frame's axes: channels, height, width; or channels last, as pictures have them."""

_LARGEST = 255  # of uint8: the brightness of white


class FrameConv(nn.Conv2d):
    """A convolution of frames [B, C, H, W] or [B, H, W, C].

    Frames of uint8 count as 0 to 1: the weights are scaled, and not the frames, so bytes are read
    once and written once, in the dtype in which the convolution is computed (that of
    `torch.autocast`, inside of it). Floats and booleans are taken as they are.

    Args:
        frame_shape: shape of a frame, in the order of its axes.
        out_channels, kernel_size, stride, padding: as for `nn.Conv2d`.
        order: the order of a frame's axes: "CHW" or "HWC".
        channels_last: whether the results have torch's memory format `channels_last`, in which
            convolutions are faster on many GPUs. The order of the axes is the same.

    Raises:
        ValueError: frame_shape has not 3 axes, or order is neither.

    Example:
        >>> layer = FrameConv((3, 8, 8), 16, kernel_size=4, stride=4)
        >>> frames = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
        >>> torch.allclose(layer(frames), layer(frames / 255), atol=1e-6)
        True
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        order: Order = "CHW",
        channels_last: bool = False,
    ) -> None:
        self.channels, self.height, self.width = split_shape(frame_shape, order)
        super().__init__(self.channels, out_channels, kernel_size, stride, padding)
        self._order = order
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, frames: Tensor) -> Tensor:
        """Convolve frames of uint8, bool or floats.

        Raises:
            TypeError: the frames are integers of another kind.
            ValueError: they have another shape than the layer was made for.
        """
        rows = frames.permute(0, 3, 1, 2) if self._order == "HWC" and frames.ndim == 4 else frames
        if rows.ndim != 4 or rows.shape[1:] != (self.channels, self.height, self.width):
            c, h, w = self.channels, self.height, self.width
            expected = f"(B, {c}, {h}, {w})" if self._order == "CHW" else f"(B, {h}, {w}, {c})"
            raise ValueError(
                f"frames: got {tuple(frames.shape)}, expected {expected}; give the network the"
                " frames' shape, and the order of their axes (order=)"
            )
        is_bytes = rows.dtype == torch.uint8
        if not (is_bytes or rows.dtype == torch.bool or rows.is_floating_point()):
            raise TypeError(
                f"frames: got {rows.dtype}, expected uint8, which is scaled to 0 to 1, or bool, or"
                " floats; convert them, so that it is known how large they can be"
            )
        rows = rows.to(self._dtype(rows.device.type), memory_format=self._memory_format)
        weight = self.weight * (1 / _LARGEST) if is_bytes else self.weight
        maps: Tensor = self._conv_forward(rows, weight, self.bias)
        return maps

    def _dtype(self, device_type: str) -> torch.dtype:
        """Return the dtype in which the convolution is computed."""
        if torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
        return self.weight.dtype


def split_shape(frame_shape: Sequence[int], order: Order) -> tuple[int, int, int]:
    """Return channels, height and width of a frame."""
    if order not in ("CHW", "HWC"):
        raise ValueError(f"order: got {order!r}, expected 'CHW' or 'HWC'")
    if len(frame_shape) != 3 or min(frame_shape) < 1:
        raise ValueError(
            f"frame_shape: got {tuple(frame_shape)}, expected 3 numbers of 1 or more: {order}"
        )
    first, second, third = frame_shape
    return (first, second, third) if order == "CHW" else (third, first, second)
