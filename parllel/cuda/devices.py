"""Devices of one process: which one is current, and how another one becomes that for a while."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from parllel.cuda.library import DeviceArray, Library, library


def device_number() -> int:
    """Return the number of the current device of this thread, which is torch's as well.

    Raises:
        CudaUnavailableError: there is no usable device.
        RuntimeError: torch has another one. Its streams belong to that, and no work of the current
            device can go there.

    >>> from parllel.testing import simulated_cuda
    >>> with simulated_cuda():  # on a GPU, leave this line out
    ...     device_number()
    0
    """
    return device_number_of(library())


def device_number_of(cupy: Library) -> int:
    """Return what `device_number` does, given the CuPy that `library` has returned."""
    number: int = cupy.cuda.runtime.getDevice()
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return number
    theirs = getattr(torch.cuda.current_stream(), "device_index", number)
    if theirs != number:
        raise RuntimeError(
            f"device: torch's current one is {theirs}, and CuPy's is {number}, expected one for"
            f" both; choose it with parllel.cuda.use_device({theirs}), or show the program one"
            " device alone with CUDA_VISIBLE_DEVICES"
        )
    return number


def check_current(array: DeviceArray) -> None:
    """Refuse an array that is memory of another device than the current one.

    CUDA itself would copy it, in a stream of the current device, which waits for no work of the
    array's own.

    Raises:
        RuntimeError: it is.

    >>> import numpy as np
    >>> from parllel import cuda
    >>> from parllel.testing import simulated_cuda
    >>> with simulated_cuda():  # on a GPU, leave this line out
    ...     check_current(cuda.to_device(np.zeros(3)))
    """
    owner = getattr(array, "device", None)  # simulated CUDA has one device, and tells of none
    if owner is None:
        return
    number: int = library().cuda.runtime.getDevice()
    if owner.id != number:
        raise RuntimeError(
            f"array: got memory of device {owner.id}, and device {number} is the current one:"
            " a copy would not wait for the work that writes or reads it; put all that uses the"
            f" memory inside of `with parllel.cuda.use_device({owner.id}):`"
        )


@contextmanager
def use_device(number: int) -> Iterator[None]:
    """Make a device the current one of this thread inside the `with` block, for CuPy and torch.

    Memory of the kinds "device" and "managed" is allocated on the current device, and work on it
    has to be queued while it is current: allocate a tree, sample into it and learn from it inside
    of one block. Each thread begins with device 0. Entering and leaving wait for nothing.

    Args:
        number: the number of a device that this process sees, from 0 on.

    Raises:
        CudaUnavailableError: there is no usable device.
        ValueError: there is no device of this number.

    >>> from parllel.testing import simulated_cuda
    >>> with simulated_cuda(), use_device(0):  # on a GPU, leave the simulation out
    ...     device_number()
    0
    """
    cupy = library()
    n_devices = cupy.cuda.runtime.getDeviceCount()
    if not 0 <= number < n_devices:
        raise ValueError(
            f"device: got {number}, expected a number below {n_devices}, as many as this process"
            " sees; CUDA_VISIBLE_DEVICES chooses and numbers them"
        )
    torch = sys.modules.get("torch")
    of_torch: AbstractContextManager[object] = nullcontext()
    if torch is not None and torch.cuda.is_available():
        of_torch = torch.cuda.device(number)
    with cupy.cuda.Device(number), of_torch:
        yield
