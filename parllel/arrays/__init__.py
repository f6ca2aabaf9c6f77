"""Array and its kinds: where samples live."""

from parllel.arrays.array import Array, KindSpec
from parllel.arrays.array_spec import ArraySpec
from parllel.arrays.frame_array import FrameArray, FrameSpec
from parllel.arrays.frame_buffer import Fill
from parllel.arrays.graph_batch import GraphBatch, batch_graphs
from parllel.arrays.jagged import Jagged
from parllel.arrays.jagged_array import JaggedArray, JaggedSpec
from parllel.arrays.kinds import spec_from_entry, stacked_spec
from parllel.arrays.packed_array import PackedSpec
from parllel.arrays.row_writer import RowWriter
from parllel.arrays.types import Leaf

__all__ = [
    "Array",
    "ArraySpec",
    "Fill",
    "FrameArray",
    "FrameSpec",
    "GraphBatch",
    "Jagged",
    "JaggedArray",
    "JaggedSpec",
    "KindSpec",
    "Leaf",
    "PackedSpec",
    "RowWriter",
    "batch_graphs",
    "spec_from_entry",
    "stacked_spec",
]
