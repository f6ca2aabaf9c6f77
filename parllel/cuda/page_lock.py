"""Page-locking: making host memory that exists already one that the device can read and write."""

from __future__ import annotations

import os
import sys
import weakref

import numpy as np
from numpy.typing import NDArray

from parllel.cuda.devices import use_device
from parllel.cuda.library import DeviceArray, Library, library
from parllel.cuda.streams import synchronize

_MEMORY_ALLOCATION = 2  # cudaErrorMemoryAllocation

# Flags of cudaHostRegister that CuPy has no names for.
_PORTABLE = 1  # for every device's context
_MAPPED = 2  # the device gets an address for it


class PageLock:
    """Host memory that is page-locked and mapped into the device's addresses, until `release`.

    Copies between it and the device are asynchronous, and kernels can use it in place. Only the
    process that made the lock may hand the memory to CUDA; others that map it just read and
    write. The lock keeps `block` alive, but does not own the memory. A lock that is never released
    goes with its last reference, and waits for the current stream before: that of the device which
    was current when the lock was made.

    >>> from parllel.testing.simulated_cuda import simulated_cuda
    >>> with simulated_cuda("lazy"):
    ...     lock = PageLock(np.arange(3, dtype=np.uint8))
    ...     print(lock.device_view().get())  # the device reads the host's bytes
    ...     lock.release()
    [0 1 2]

    Making and releasing a lock is synchronous and slow (it touches every page): do it once. The
    host waits for no stream.

    Args:
        block: uint8 [nbytes], C-contiguous, with at least one byte.

    Raises:
        CudaUnavailableError: there is no usable device.
        MemoryError: there is less memory that can be locked.
        RuntimeError: the system refused to lock the pages for another reason.
    """

    def __init__(self, block: NDArray[np.uint8]) -> None:
        cupy = library()
        runtime, address = cupy.cuda.runtime, block.ctypes.data
        try:
            runtime.hostRegister(address, block.nbytes, _PORTABLE | _MAPPED)
        except runtime.CUDARuntimeError as error:
            kind = MemoryError if error.status == _MEMORY_ALLOCATION else RuntimeError
            raise kind(
                f"pinned memory: {block.nbytes:,} bytes at {address:#x} could not be page-locked"
                f' ({error}); lock less (`ulimit -l` limits it), or use storage="shared"'
            ) from error
        self.device_address: int = runtime.pointerGetAttributes(address).devicePointer
        # CuPy's own view of the memory; its owner keeps the lock as long as it is used.
        self._block: NDArray[np.uint8] | None = block
        self._process = os.getpid()
        self._device: int = runtime.getDevice()
        held = address, self._process, self._device
        self._unlock = weakref.finalize(self, _unlock_after_work, cupy, *held)
        self._unlock.atexit = False  # the process takes its locks with it

    @property
    def is_own(self) -> bool:
        """Whether this process made the lock; one that was forked from it just has the memory."""
        return os.getpid() == self._process

    def device_view(self) -> DeviceArray:
        """Return the same bytes as a device array, uint8 [nbytes], which keeps the lock.

        Work that uses it reads and writes host memory in the order of its stream.

        Raises:
            ValueError: the lock was released.
        """
        if self._block is None:
            raise ValueError("page-locked memory: the lock was released")
        cupy = library()
        memory = cupy.cuda.UnownedMemory(self.device_address, self._block.nbytes, self)
        pointer = cupy.cuda.MemoryPointer(memory, 0)
        return cupy.ndarray(self._block.nbytes, np.uint8, memptr=pointer)

    def host_view(self) -> NDArray[np.uint8]:
        """Return the same bytes as an array of the host, uint8 [nbytes], which keeps the lock.

        Raises:
            ValueError: the lock was released.
        """
        if self._block is None:
            raise ValueError("page-locked memory: the lock was released")
        return np.asarray(_Kept(self, self._block))

    def synchronize(self) -> None:
        """Make the host wait for the current stream of the lock's device, whichever is current."""
        with use_device(self._device):
            synchronize()

    def release(self) -> None:
        """Unlock the pages. Called again, or in a forked process, it does nothing.

        All work that uses the memory must be done: wait for its event or stream first.
        """
        self._block = None
        held = self._unlock.detach()
        if held is not None:
            _, _, (cupy, address, *_), _ = held
            if self.is_own:
                cupy.cuda.runtime.hostUnregister(address)


class _Kept:
    """Bytes as NumPy takes them, with the lock and the memory that they need."""

    def __init__(self, lock: PageLock, block: NDArray[np.uint8]) -> None:
        self._lock, self._block = lock, block
        self.__array_interface__ = block.__array_interface__


def _unlock_after_work(cupy: Library, address: int, process: int, device: int) -> None:
    if os.getpid() != process:
        return
    if sys.modules.get("cupy") is cupy:  # otherwise it was a simulation's, which has ended
        with use_device(device):
            synchronize()
    cupy.cuda.runtime.hostUnregister(address)
