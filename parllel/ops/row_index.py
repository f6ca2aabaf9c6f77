"""How rows that an index names are told to a kernel on a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from parllel import cuda


def is_on_device(index: Any) -> bool:  # Any: range, numpy.ndarray or cupy.ndarray
    """Whether the rows of an index are in device memory, where nobody checks them."""
    return not isinstance(index, range | np.ndarray)


def kernel_arguments(index: Any) -> list[Any]:  # Any: as above; NumPy scalars and cupy.ndarray
    """Return a kernel's three arguments for an index: a vector or 0, then start and step.

    Integers of the host are copied to the device, in the caller's current stream.
    """
    if isinstance(index, range):
        return [np.int64(0), np.int64(index.start), np.int64(index.step)]
    if isinstance(index, np.ndarray):
        index = cuda.to_device(np.ascontiguousarray(index, np.int64))
    return [index, np.int64(0), np.int64(0)]
