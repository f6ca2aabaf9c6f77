"""`local` storage: ordinary memory of this process."""

from __future__ import annotations

import numpy as np

from parllel.storages.host_memory import check_available
from parllel.storages.storage import ALIGNMENT, Memory


class Local(Memory):
    """Ordinary memory. Other processes get copies of it, never the memory itself.

    >>> from parllel import Array
    >>> Array((2, 3), np.float32, storage="local").storage
    'local'

    Args:
        nbytes: size of the block.

    Raises:
        MemoryError: there is less memory than that.
    """

    kind = "local"
    is_private = True

    def __init__(self, nbytes: int) -> None:
        check_available("local", nbytes)
        try:
            block = np.zeros(nbytes + ALIGNMENT, np.uint8)
        except MemoryError as error:
            raise MemoryError(f"local memory: {nbytes:,} bytes wanted; {error}") from error
        start = -block.ctypes.data % ALIGNMENT
        super().__init__(block[start : start + nbytes])
