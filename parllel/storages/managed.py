"""`managed` storage: unified memory, which host and GPU use by one address."""

from __future__ import annotations

from typing import Any

import numpy as np

from parllel import cuda
from parllel.storages.device import Device
from parllel.storages.host_memory import check_available
from parllel.storages.storage import Memory


class Managed(Memory):
    """Unified memory: Arrays use it from the host, kernels and torch from the GPU.

    Neither side waits for the other: wait for the stream before the host touches what it uses.
    Making it waits for the caller's current stream, and CUDA lets giving it back wait for the
    whole device: do neither in a loop. Only this process can use it.

    >>> from parllel import Array
    >>> from parllel.testing import simulated_cuda
    >>> with simulated_cuda():  # on a GPU, leave this line out
    ...     array = Array((3,), np.float32, storage="managed")
    ...     array.to_cupy().fill(2)
    ...     cuda.synchronize()
    ...     array.to_ndarray().tolist()
    [2.0, 2.0, 2.0]

    Args:
        nbytes: size of the block.

    Raises:
        CudaUnavailableError: there is no usable device, or the host can't use its managed memory
            while a kernel runs, as under WSL2.
        MemoryError: device and host together have less memory than that, or the system refused
            it; nothing was allocated.
    """

    kind = "managed"
    side = "gpu"
    is_for_gpu = True

    def __init__(self, nbytes: int) -> None:
        check_available(self.kind, nbytes, elsewhere=cuda.free_nbytes())  # pages move to either
        self._on_device, on_host = cuda.allocate_managed(nbytes)
        super().__init__(on_host)

    def device_array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return a device array over the bytes from `offset` on."""
        return self._part(self._on_device, offset, shape, dtype)

    __reduce__ = Device.__reduce__
