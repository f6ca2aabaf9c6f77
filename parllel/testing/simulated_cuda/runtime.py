"""The stand-in for cupy.cuda.runtime: versions, free memory, page-locking."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parllel.testing.simulated_cuda.active import is_active, machine
from parllel.testing.simulated_cuda.errors import NotImitatedError
from parllel.testing.simulated_cuda.memory import Memory, bytes_at
from parllel.testing.simulated_cuda.runtime_errors import (
    ALREADY_REGISTERED,
    INVALID_VALUE,
    NOT_REGISTERED,
    CUDARuntimeError,
)
from parllel.testing.simulated_cuda.streams import is_capturing, synchronize_device

cudaDevAttrConcurrentManagedAccess = 89  # noqa: N816  # CUDA's number

_VERSION = 13000  # CUDA 13.0
_TYPES = {"page-locked": 1, "device": 2, "foreign": 2, "managed": 3}  # cudaMemoryType


class PointerAttributes:
    """Stands in for cupy.cuda.runtime.PointerAttributes."""

    def __init__(self, device: int, devicePointer: int, hostPointer: int, type: int = -1) -> None:
        self.device = device
        self.devicePointer = devicePointer
        self.hostPointer = hostPointer
        self.type = type


def getDeviceCount() -> int:  # noqa: N802
    """Return the number of devices."""
    return machine().n_devices


def getDevice() -> int:  # noqa: N802
    """Return the number of this thread's current device."""
    return machine().thread.device


def deviceGetAttribute(attrib: int, device: int) -> int:  # noqa: N802
    """Return an attribute of a device. Each has concurrent managed access."""
    if attrib != cudaDevAttrConcurrentManagedAccess:
        raise NotImitatedError(f"attribute {attrib} of a device is not imitated")
    return 1


def driverGetVersion() -> int:  # noqa: N802
    """Return the newest CUDA version that the driver supports."""
    return _VERSION


def runtimeGetVersion() -> int:  # noqa: N802
    """Return the version of the CUDA runtime."""
    return _VERSION


def memGetInfo() -> tuple[int, int]:  # noqa: N802
    """Return the free and the total bytes of the current device's memory."""
    memory = machine().memory
    memory.collect()
    return memory.capacity - memory.used_by(getDevice()), memory.capacity


def deviceSynchronize() -> None:  # noqa: N802
    """Make the host wait for the whole current device."""
    synchronize_device()


def hostRegister(ptr: int, size: int, flags: int) -> None:  # noqa: N802
    """Lock the pages of host memory."""
    machine().engine.captures.check_unsafe()
    if size <= 0:
        raise CUDARuntimeError(INVALID_VALUE)
    if not machine().memory.lock_pages(ptr, size):
        raise CUDARuntimeError(ALREADY_REGISTERED)


def make_host_unregister(memory: Memory | None) -> Callable[[int], None]:
    """Return hostUnregister of one simulation, or of the one that runs when it is called.

    Finalizers may keep it longer than the simulation lasts; then it does nothing.
    """

    def hostUnregister(ptr: int) -> None:  # noqa: N802
        """Unlock the pages. Work that still uses them is a fault, which shows when it runs."""
        own = machine().memory if memory is None else memory
        if is_active(own) and not own.unlock_pages(ptr):
            raise CUDARuntimeError(NOT_REGISTERED)

    return hostUnregister


def pointerGetAttributes(ptr: int) -> PointerAttributes:  # noqa: N802
    """Return what kind of memory is at an address. Host and device use one address here."""
    region = machine().memory.find(ptr)
    if region is None:
        return PointerAttributes(-2, 0, ptr, 0)
    on_host = ptr if region.kind in ("page-locked", "managed") else 0
    return PointerAttributes(region.device, ptr, on_host, _TYPES[region.kind])


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:  # noqa: N802
    """Copy bytes in a stream, which may be captured: a replay reads them where they are then.

    Memory of the host that is not page-locked is read now, unless a replay reads it.
    """
    memory, engine = machine().memory, machine().engine
    checks = [region.check for at in (dst, src) if (region := memory.find(at)) is not None]
    for at, is_of_device in ((dst, kind in (1, 3)), (src, kind in (2, 3))):
        if is_of_device:
            memory.check(at, size, "memcpyAsync")
    source, target = bytes_at(src, size), bytes_at(dst, size)
    is_captured = engine.captures.of(engine.stream_at(stream)) is not None
    if kind == 1 and memory.find(src) is None and not is_captured:
        source = source.copy()
    engine.counters.copies_to_device += kind == 1 and not is_captured
    engine.counters.copies_to_host += kind == 2 and not is_captured
    name = f"a copy of {size:,} bytes"
    copy = engine.queue(stream, name, lambda: np.copyto(target, source), checks=checks)
    if kind == 2 and memory.find(dst) is None and not is_captured:
        engine.wait(copy)


def streamIsCapturing(stream: int) -> bool:  # noqa: N802
    """Tell whether a stream is captured."""
    return is_capturing(stream)
