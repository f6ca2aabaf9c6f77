"""Transforms: small steps between sampling and learning."""

from parllel.transforms.advantage import EstimateAdvantage, NormalizeAdvantage
from parllel.transforms.clip_rewards import ClipRewards
from parllel.transforms.moments import Moments, over_ranks
from parllel.transforms.normalize_rewards import NormalizeRewards
from parllel.transforms.running_moments import RunningMoments
from parllel.transforms.transform import Transform

__all__ = [
    "ClipRewards",
    "EstimateAdvantage",
    "Moments",
    "NormalizeAdvantage",
    "NormalizeRewards",
    "RunningMoments",
    "Transform",
    "over_ranks",
]
