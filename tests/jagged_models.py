"""Models over clouds, and the same over padded rows with a mask, which they are compared with."""

from typing import Any

import torch
from torch import Tensor, nn

from parllel import Jagged
from parllel.torch.agents import ModelOutputs
from parllel.torch.distributions import DistParams


class CloudNet(nn.Module):
    """Features of a cloud: the sum over its points of a layer of each; with heads, or without.

    Args:
        n_outputs: numbers for each cloud.
    """

    n_features = 6

    def __init__(self, n_outputs: int = 0, n_inputs: int = 3) -> None:
        super().__init__()
        self.of_point = nn.Linear(n_inputs, 6)
        self.of_cloud = nn.Linear(6, n_outputs) if n_outputs else nn.Identity()

    def forward(self, clouds: Any) -> Tensor:
        if isinstance(clouds, Jagged):
            packed = clouds.packed()
            points = self.of_point(packed.values.float()).tanh()
            start = points.new_zeros(len(packed), points.shape[1])
            summed = start.index_add(0, packed.segment_ids(), points)
        else:  # rows [N, most, 3], with the number of the points in front
            rows, counts = clouds[..., 1:, :], clouds[..., 0, 0]
            points = self.of_point(rows).tanh()
            mask = torch.arange(rows.shape[-2]) < counts[:, None]
            summed = (points * mask[..., None]).sum(-2)
        features: Tensor = self.of_cloud(summed)
        return features


class CloudActorCritic(nn.Module):
    """Logits of two actions, and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.net = CloudNet(3)

    def forward(self, clouds: Any) -> ModelOutputs:
        outputs = self.net(clouds)
        return ModelOutputs(DistParams(logits=outputs[:, :2]), outputs[:, 2])
