"""Array and its kinds: where samples live."""

from parllel.arrays.array import Array
from parllel.arrays.frame_spec import FrameSpec
from parllel.arrays.frames import FrameArray
from parllel.arrays.spec import ArraySpec

__all__ = ["Array", "ArraySpec", "FrameArray", "FrameSpec"]
