"""The stand-ins for CuPy's memory: pointers, the pool, managed memory, a user's own allocator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from parllel.testing.simulated_cuda.active import current_stream, machine
from parllel.testing.simulated_cuda.errors import OutOfBoundsError
from parllel.testing.simulated_cuda.memory import Memory, Region
from parllel.testing.simulated_cuda.streams import Stream

_LARGEST = 2**64 - 1  # a size_t


class OutOfMemoryError(MemoryError):
    """Stands in for cupy.cuda.memory.OutOfMemoryError."""


class BaseMemory:
    """Stands in for cupy.cuda.BaseMemory: it frees what it owns when it goes.

    Args:
        region: the memory.
        size: bytes of it.
        owner: kept alive as long as this object.
        drops: where the region is freed; None for memory that another object owns.
    """

    def __init__(
        self, region: Region, size: int, *, owner: object = None, drops: Memory | None = None
    ) -> None:
        self._region = region
        self.ptr = region.address
        self.size = size
        self.device_id = region.device
        self._owner = owner
        self._drops = drops

    def __del__(self) -> None:
        drops = getattr(self, "_drops", None)  # absent where the constructor raised
        if drops is not None:
            drops.drop(self._region)


class UnownedMemory(BaseMemory):
    """Stands in for cupy.cuda.UnownedMemory."""

    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        region = machine().memory.find(ptr)
        if region is None:
            raise OutOfBoundsError(
                f"UnownedMemory: the device can't reach {ptr:#x}; lock its pages"
            )
        machine().memory.check(ptr, size, "UnownedMemory")
        super().__init__(region, size, owner=owner)
        self.ptr = ptr
        if device_id >= 0:
            self.device_id = device_id


class MemoryPointer:
    """Stands in for cupy.cuda.MemoryPointer."""

    def __init__(self, mem: BaseMemory, offset: int) -> None:
        self.mem = mem
        self.ptr = mem.ptr + offset
        self.device_id = mem.device_id

    def __int__(self) -> int:
        return self.ptr

    def _bytes_behind(self, nbytes: int) -> NDArray[np.uint8]:
        """Return the bytes from here on. They do not keep the memory alive."""
        start = self.ptr - self.mem._region.address
        return self.mem._region.data[start : start + nbytes]

    def memset_async(self, value: int, size: int, stream: Stream | None = None) -> None:
        """Set bytes, in a stream, the current one by default."""
        data = self._bytes_behind(size)
        address = current_stream() if stream is None else stream.ptr
        checks = (self.mem._region.check,)
        machine().engine.queue(address, "a memset", lambda: data.fill(value), checks=checks)


class MemoryPool:
    """Stands in for cupy.cuda.MemoryPool. It never hands freed memory out again."""

    def malloc(self, size: int) -> MemoryPointer:
        """Return new memory that belongs to the current stream."""
        return MemoryPointer(_allocate(size, "device"), 0)

    def free_bytes(self) -> int:
        """Return the bytes that are kept for reuse: 0."""
        return 0

    def free_all_blocks(self, stream: Stream | None = None) -> None:
        """Do nothing: no block is kept."""


class PythonFunctionAllocator:
    """Stands in for cupy.cuda.PythonFunctionAllocator."""

    def __init__(
        self, malloc_func: Callable[[int, int], int], free_func: Callable[[int, int], None]
    ) -> None:
        self._malloc = malloc_func
        self._free = free_func

    def malloc(self, size: int) -> MemoryPointer:
        """Return memory that `malloc_func` makes, and `free_func` takes back in its stream."""
        if size == 0:
            return MemoryPointer(_allocate(0, "device"), 0)
        memory, number, stream = machine().memory, machine().thread.device, current_stream()
        address = self._malloc(size, number)

        def take_back(address: int) -> None:
            self._free(address, number)

        region = memory.adopt(address, size, stream=stream, give_back=take_back)
        return MemoryPointer(BaseMemory(region, size, drops=memory), 0)


_pool = MemoryPool()


def get_default_memory_pool() -> MemoryPool:
    """Stand in for cupy.get_default_memory_pool."""
    return _pool


def get_allocator() -> Callable[[int], MemoryPointer]:
    """Stand in for cupy.cuda.get_allocator."""
    return machine().allocator or _pool.malloc


def set_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> None:
    """Stand in for cupy.cuda.set_allocator."""
    machine().allocator = allocator


def malloc_managed(size: int) -> MemoryPointer:
    """Stand in for cupy.cuda.malloc_managed. Freeing it waits for the device."""
    return MemoryPointer(_allocate(size, "managed"), 0)


def _allocate(size: int, kind: str) -> BaseMemory:
    if size > _LARGEST:
        raise OverflowError("Python int too large to convert to C unsigned long")
    memory = machine().memory
    machine().engine.captures.check_unsafe()  # a pool that has no block left asks the driver
    try:
        region = memory.allocate(size, kind=kind, stream=current_stream())
    except MemoryError as error:
        raise OutOfMemoryError(f"Out of memory: {error}") from None
    return BaseMemory(region, size, drops=memory)
