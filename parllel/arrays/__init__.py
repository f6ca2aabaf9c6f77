"""Array and its kinds: where samples live."""

from parllel.arrays.array import Array
from parllel.arrays.frame_array import FrameArray
from parllel.arrays.frame_spec import FrameSpec
from parllel.arrays.spec import ArraySpec

__all__ = ["Array", "ArraySpec", "FrameArray", "FrameSpec"]
