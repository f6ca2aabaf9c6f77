"""`pinned` storage: shared memory that the process which owns it has page-locked."""

from __future__ import annotations

from typing import Any

import numpy as np

from parllel import cuda
from parllel.storages.shared import Shared


class Pinned(Shared):
    """Shared memory, page-locked and mapped into the device's addresses by its owner.

    Copies between it and the device are asynchronous, and kernels read it in place: record an
    event behind them, and wait for it before the host touches the bytes again. Processes that
    receive it map it as plain shared memory and need no CUDA.

    Closing makes the host wait for the current stream of the device that was current when the
    memory was allocated; wait for others that use the memory before. Locking and unlocking pages is
    slow: allocate once.

    >>> from parllel import Array
    >>> from parllel.testing import simulated_cuda
    >>> with simulated_cuda():  # on a GPU, leave this line out
    ...     array = Array((3,), np.float32, storage="pinned")
    ...     array[...] = 3
    ...     cuda.to_device(array.to_ndarray()).get().tolist()
    [3.0, 3.0, 3.0]

    Args:
        nbytes: size of the block.

    Raises:
        CudaUnavailableError: there is no usable device.
        MemoryError: there is less memory than that, or less that can be locked; nothing was
            allocated.
        RuntimeError: the system refused to lock the pages for another reason.
    """

    kind = "pinned"
    is_for_gpu = True

    def __init__(self, nbytes: int) -> None:
        cuda.library()  # before anything is allocated
        super().__init__(max(nbytes, 1))
        assert self._block is not None
        try:
            self._lock = cuda.PageLock(self._block)
        except Exception:
            super()._close()  # the error may keep this object for long
            raise
        self._block = self._lock.host_view()  # ndarrays and tensors keep the pages locked

    def device_array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return a device array over the bytes from `offset` on."""
        return self._part(self._lock.device_view(), offset, shape, dtype)

    def _close(self) -> None:
        if not self.is_closed:
            if self._lock.is_own:
                # Unlocking does not wait for what reads or writes the pages.
                self._lock.synchronize()
            self._lock.release()
        super()._close()
