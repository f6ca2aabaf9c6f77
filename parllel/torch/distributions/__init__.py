"""Distributions of actions, as functions of a model's outputs; no objects for each step."""

from parllel.torch.distributions.categorical import Categorical, DistParams
from parllel.torch.distributions.distribution import Distribution
from parllel.torch.distributions.multi_categorical import MultiCategorical

__all__ = ["Categorical", "DistParams", "Distribution", "MultiCategorical"]
