"""`device` storage: memory of the current CUDA device."""

from __future__ import annotations

from typing import Any

import numpy as np

from parllel import cuda
from parllel.storages.storage import Memory

_DTYPES = "?bhilqBHILQefdFD"  # those of CuPy, by NumPy's characters


class Device(Memory):
    """Memory of a GPU, allocated by CuPy's pool (or torch's: `cuda.use_torch_allocator`).

    It is zeroed in the caller's current stream, asynchronously, and belongs to it: another stream
    that uses the memory must wait for an event first, and be done before the memory is closed.
    Only this process can use it.

    >>> from parllel import Array
    >>> from parllel.testing import simulated_cuda
    >>> with simulated_cuda():  # on a GPU, leave this line out
    ...     array = Array((2, 3), np.float32, storage="device")
    ...     array[...] = 1
    ...     float(array.to_cupy()[1, 2])
    1.0

    Args:
        nbytes: size of the block.

    Raises:
        CudaUnavailableError: there is no usable device.
        MemoryError: there is less memory than that; nothing was allocated.
    """

    kind = "device"
    side = "gpu"
    is_on_host = False
    is_for_gpu = True

    def __init__(self, nbytes: int) -> None:
        super().__init__(cuda.allocate_device(nbytes))

    def check_dtype(self, dtype: np.dtype[Any]) -> None:
        """Raise TypeError for what no GPU computes with: dates, text, records, foreign bytes."""
        if dtype.char not in _DTYPES or not dtype.isnative:
            raise TypeError(
                f"dtype: got {dtype}, expected booleans, integers, floats or complex numbers of at"
                " most 64 bits a part, in the machine's own byte order: device memory holds what a"
                ' GPU computes with; use storage="pinned" for others'
            )

    def __reduce__(self) -> tuple[object, ...]:
        raise ValueError(
            "device memory can't be sent to another process; send pinned or shared memory, or the"
            " values (to_ndarray)"
        )
