"""The branch `valid` of a batch: which of its rows are transitions, for what learns from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array, Leaf
from parllel.cuda import to_host
from parllel.tree.array_dict import ArrayDict
from parllel.tree.leaves import as_ndarray


def valid_rows(batch: ArrayDict) -> NDArray[np.bool_] | None:
    """Return which rows of a batch are transitions to learn from, bool [T, B].

    Returns:
        What the branch `valid` holds, on the host: for memory of a GPU the host waits for the
        caller's current stream. None where there is no such branch, or all rows are valid.

    Raises:
        TypeError: `valid` is a tree, or its dtype is not bool.
    """
    if "valid" not in batch:
        return None
    valid = as_mask("valid", batch["valid"])
    return None if valid.all() else valid


def as_mask(name: str, mask: Leaf) -> NDArray[np.bool_]:
    """Return a mask of any library on the host, for which the host waits where it is a GPU's.

    Raises:
        TypeError: the mask is a tree, or its dtype is not bool.
    """
    if isinstance(mask, ArrayDict):
        raise TypeError(f"{name}: got a tree of {sorted(mask)}, expected one leaf of bool")
    values: NDArray[Any]
    if isinstance(mask, Array) and mask.side == "gpu":  # managed memory too: it may be behind
        values = to_host(mask.to_cupy())
    else:
        values = as_ndarray(mask)
    if values.dtype != np.bool_:
        raise TypeError(f"{name}: dtype {values.dtype}, expected bool: True for a valid row")
    return values
