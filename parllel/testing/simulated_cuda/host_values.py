"""Values of the host that queued work reads: when they are read depends on their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.testing.simulated_cuda.active import machine

Check = Callable[[str], None]


class HostValues:
    """A host array as the source of queued work.

    Page-locked memory is read when the work runs: a program that overwrites it earlier changes what
    the device gets. Other memory is staged by the driver, so it is copied now.

    Args:
        values: the array.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        region = machine().memory.find_locked(values)
        self.checks: tuple[Check, ...] = () if region is None else (region.check,)
        self._values = values if region is not None else np.array(values)

    def read(self) -> NDArray[Any]:
        """Return the values, at the time when the work runs."""
        return self._values
