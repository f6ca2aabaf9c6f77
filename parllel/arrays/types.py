"""Names of what travels between functions: leaves of trees, of whatever library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray

from parllel.arrays.array import Array
from parllel.cuda import DeviceArray

if TYPE_CHECKING:
    import torch

Leaf: TypeAlias = "Array | NDArray[Any] | torch.Tensor | DeviceArray"
"""A leaf of a tree: an Array, an array of NumPy or CuPy, a torch tensor."""
