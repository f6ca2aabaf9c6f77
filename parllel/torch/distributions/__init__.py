"""Distributions of actions, as functions of a model's outputs; no objects for each step."""

from parllel.torch.distributions.action_map import ActionMap
from parllel.torch.distributions.box_scale import BoxScale
from parllel.torch.distributions.categorical import Categorical, DistParams
from parllel.torch.distributions.clipped_gaussian import ClippedGaussian
from parllel.torch.distributions.diagonal_gaussian import GaussianParams
from parllel.torch.distributions.distribution import Distribution, ReparameterizedDistribution
from parllel.torch.distributions.gaussian import Gaussian
from parllel.torch.distributions.multi_categorical import MultiCategorical
from parllel.torch.distributions.squashed_gaussian import SquashedGaussian

__all__ = [
    "ActionMap",
    "BoxScale",
    "Categorical",
    "ClippedGaussian",
    "DistParams",
    "Distribution",
    "Gaussian",
    "GaussianParams",
    "MultiCategorical",
    "ReparameterizedDistribution",
    "SquashedGaussian",
]
