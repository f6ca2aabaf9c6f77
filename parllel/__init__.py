"""parllel: the sample buffer of reinforcement-learning programs, made for the GPU."""

from parllel.arrays import Array, FrameArray, Jagged, JaggedArray
from parllel.storages import default_storage
from parllel.tree import ArrayDict, dict_map

__all__ = [
    "Array",
    "ArrayDict",
    "FrameArray",
    "Jagged",
    "JaggedArray",
    "default_storage",
    "dict_map",
]
