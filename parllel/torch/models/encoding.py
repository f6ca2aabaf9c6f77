"""What networks with heads share: which leaf the encoder takes, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Encoding(nn.Module):
    """An encoder, with the choice of what it is given and of how exactly it computes.

    Args:
        encoder: turns rows into features [B, n_features].
        n_features: their number; by default what the encoder calls so.
        leaf: name of the leaf of an observation that the encoder takes, where observations are
            trees; None gives it all.
        autocast: dtype in which layers compute, `torch.bfloat16` as a rule; None for that of the
            parameters. The features are float32 in any case, and so are heads.

    Raises:
        TypeError: the encoder does not say how many features it has.
    """

    def __init__(
        self,
        encoder: nn.Module,
        n_features: int | None = None,
        *,
        leaf: str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        own = getattr(encoder, "n_features", None) if n_features is None else n_features
        if not isinstance(own, int):
            raise TypeError(
                f"encoder: {type(encoder).__name__} has no integer n_features; give n_features="
                ", the number of features that it returns"
            )
        self.encoder = encoder
        self.n_features = own
        self._leaf = leaf
        self._autocast = autocast

    def encode(self, observation: Tensor | Mapping[str, Any]) -> Tensor:
        """Return features [B, n_features], float32."""
        rows = observation if self._leaf is None else observation[self._leaf]  # type: ignore[index]
        if self._autocast is None:
            features: Tensor = self.encoder(rows)
            return features
        device_type = next(self.encoder.parameters()).device.type
        with torch.autocast(device_type, self._autocast):
            features = self.encoder(rows)
        return features.float()
