"""Distributions of actions, as functions of a model's outputs; no objects for each step."""

from parllel.torch.distributions.categorical import Categorical, DistParams

__all__ = ["Categorical", "DistParams"]
