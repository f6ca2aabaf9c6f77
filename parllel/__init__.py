"""parllel: the sample buffer of reinforcement-learning programs, made for the GPU."""

from parllel.arrays import Array
from parllel.tree import ArrayDict, dict_map

__all__ = ["Array", "ArrayDict", "dict_map"]
