"""Devices of one process: which one is current, and how another one becomes that for a while."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from parllel.cuda.library import DeviceArray, Library, library

if TYPE_CHECKING:
    import torch


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
    if torch is not None and torch.cuda.is_initialized():
        check_torchs(torch.cuda.current_stream(), number)
    return number


def check_torchs(stream: torch.cuda.Stream, number: int) -> None:
    """Refuse torch's current stream where it belongs to another device than CuPy's current one.

    Raises:
        RuntimeError: it does.
    """
    theirs = getattr(stream, "device_index", number)
    if theirs != number:
        raise RuntimeError(
            f"device: torch's current one is {theirs}, and CuPy's is {number}, expected one for"
            f" both; choose it with parllel.cuda.use_device({theirs}), or show the program one"
            " device alone with CUDA_VISIBLE_DEVICES"
        )


def check_current(*arrays: DeviceArray) -> None:
    """Refuse arrays that are memory of another device than the current one.

    All that parllel does on a GPU goes to the current device's stream, which waits for no work of
    another device; and a GPU may not be able to read another one's memory at all. Page-locked and
    managed memory count as the device's that was current when they were allocated.

    Raises:
        RuntimeError: one is.

    >>> import numpy as np
    >>> from parllel import cuda
    >>> from parllel.testing import simulated_cuda
    >>> with simulated_cuda():  # on a GPU, leave this line out
    ...     check_current(cuda.to_device(np.zeros(3)))
    """
    number: int = library().cuda.runtime.getDevice()
    for array in arrays:
        if array.data.device_id != number:
            raise another_device("array", array.data.device_id, number)


def another_device(name: str, owner: int, current: int) -> RuntimeError:
    """Return the error for what belongs to another device than the current one.

    Args:
        name: what it is, for the message.
        owner, current: numbers of its device, and of the current one.
    """
    return RuntimeError(
        f"{name}: got memory of device {owner}, expected memory of device {current}, which is the"
        " current one: its work would not wait for the other one's; put all that uses the memory"
        f" inside of `with parllel.cuda.use_device({owner}):`, or copy values by way of the host"
        " (to_ndarray)"
    )


@contextmanager
def use_device(number: int) -> Iterator[None]:
    """Make a device the current one of this thread inside the `with` block, for CuPy and torch.

    Memory of the kinds "device", "managed" and "pinned" belongs to the device that is current when
    it is allocated, and is used while that one is current: allocate a tree, sample into it and
    learn from it inside of one block, or of several. Outside of them whatever works on the memory
    raises RuntimeError, and so does a tree with leaves of two devices; closing it is allowed. Each
    thread begins with device 0. Entering and leaving wait for nothing.

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
