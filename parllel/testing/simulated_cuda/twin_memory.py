"""What twins that take addresses ask about the memory behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.testing.simulated_cuda.active import device

INTEGER_NBYTES = 8


def address_of(argument: Any) -> int:
    """Return the address that a launch's argument is."""
    return argument.ctypes.data if isinstance(argument, np.ndarray) else int(argument)


def integers_at(address: int, n: int) -> NDArray[np.int64]:
    """Return int64 numbers that the device may read."""
    nbytes = n * INTEGER_NBYTES
    device().memory.check(address, nbytes, "rows, a table or an index")
    region = device().memory.find(address)
    assert region is not None, "check has raised otherwise"
    start = address - region.address
    return region.data[start : start + nbytes].view(np.int64)


def check_rows(who: str, address: int, stride: int, span: tuple[int, int], nbytes: int) -> None:
    """Raise unless the device may use the rows from the lowest to the highest."""
    ends = [address + row * stride for row in span]
    device().memory.check(min(ends), max(ends) + nbytes - min(ends), who)
