"""The stand-in for cupy.cuda.runtime: versions, free memory, page-locking."""

from __future__ import annotations

from collections.abc import Callable

from parllel.testing.simulated_cuda.active import device, is_active
from parllel.testing.simulated_cuda.memory import Memory
from parllel.testing.simulated_cuda.streams import synchronize_device

_VERSION = 13000  # CUDA 13.0
_ERRORS = {
    1: "cudaErrorInvalidValue: invalid argument",
    712: "cudaErrorHostMemoryAlreadyRegistered: part or all of the requested memory range is"
    " already mapped",
    713: "cudaErrorHostMemoryNotRegistered: pointer does not correspond to a registered memory"
    " region",
}
_TYPES = {"page-locked": 1, "device": 2, "foreign": 2, "managed": 3}  # cudaMemoryType


class CUDARuntimeError(RuntimeError):
    """Stands in for cupy.cuda.runtime.CUDARuntimeError."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_ERRORS.get(status, f"error {status}"))


class PointerAttributes:
    """Stands in for cupy.cuda.runtime.PointerAttributes."""

    def __init__(self, device: int, devicePointer: int, hostPointer: int, type: int = -1) -> None:
        self.device = device
        self.devicePointer = devicePointer
        self.hostPointer = hostPointer
        self.type = type


def getDeviceCount() -> int:  # noqa: N802
    """Return the number of devices: 1."""
    return 1


def driverGetVersion() -> int:  # noqa: N802
    """Return the newest CUDA version that the driver supports."""
    return _VERSION


def runtimeGetVersion() -> int:  # noqa: N802
    """Return the version of the CUDA runtime."""
    return _VERSION


def memGetInfo() -> tuple[int, int]:  # noqa: N802
    """Return the free and the total bytes of device memory."""
    memory = device().memory
    memory.collect()
    return memory.capacity - memory.used, memory.capacity


def deviceSynchronize() -> None:  # noqa: N802
    """Make the host wait for the whole device."""
    synchronize_device()


def hostRegister(ptr: int, size: int, flags: int) -> None:  # noqa: N802
    """Lock the pages of host memory."""
    if size <= 0:
        raise CUDARuntimeError(1)
    if not device().memory.lock_pages(ptr, size):
        raise CUDARuntimeError(712)


def make_host_unregister(memory: Memory) -> Callable[[int], None]:
    """Return hostUnregister of one simulation.

    Finalizers may keep it longer than the simulation lasts; then it does nothing.
    """

    def hostUnregister(ptr: int) -> None:  # noqa: N802
        """Unlock the pages. Work that still uses them is a fault, which shows when it runs."""
        if is_active(memory) and not memory.unlock_pages(ptr):
            raise CUDARuntimeError(713)

    return hostUnregister


def pointerGetAttributes(ptr: int) -> PointerAttributes:  # noqa: N802
    """Return what kind of memory is at an address. Host and device use one address here."""
    region = device().memory.find(ptr)
    if region is None:
        return PointerAttributes(-2, 0, ptr, 0)
    on_host = ptr if region.kind in ("page-locked", "managed") else 0
    return PointerAttributes(0, ptr, on_host, _TYPES[region.kind])
