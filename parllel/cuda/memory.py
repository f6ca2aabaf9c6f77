"""Blocks of device memory and of managed memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.cuda.capturing import refuse_capture
from parllel.cuda.devices import device_number_of
from parllel.cuda.library import CudaUnavailableError, DeviceArray, Library, library
from parllel.cuda.streams import synchronize, use_stream
from parllel.cuda.torch_sharing import torch_allocator


def allocate_device(nbytes: int) -> DeviceArray:
    """Return a zeroed block of memory of the current device: uint8 [nbytes].

    CuPy's allocator owns the memory: its pool, or torch's after `use_torch_allocator`. The block
    goes back to it with the last array over it, and belongs to the stream that is current now:
    other work of that stream may get it at once. Keep it while another stream still uses it.

    The zeros are written in the caller's current stream, asynchronously.

    Raises:
        CudaUnavailableError: there is no usable device.
        MemoryError: there is less memory than that; nothing was allocated.
        RuntimeError: the stream is being captured, or torch's current device is another one than
            CuPy's.
    """
    cupy = library()
    refuse_capture("the allocation of memory")  # what a graph uses has to outlive it
    device_number_of(cupy)
    _check_free("device", nbytes)
    with use_stream() as stream:
        try:
            block = cupy.empty(nbytes, np.uint8)
        except MemoryError as error:  # the free memory is in pieces
            raise _refused("device", nbytes, _with_free(error)) from error
        block.data.memset_async(0, nbytes, stream)
    return block


def allocate_managed(nbytes: int) -> tuple[DeviceArray, NDArray[np.uint8]]:
    """Return a zeroed block of managed memory, as the device and as the host see it.

    Both arrays are uint8 [nbytes] over the same bytes and keep them alive; the bytes are freed
    with the last of both, and CUDA itself lets that wait for the whole device. Neither side waits
    for the other: before the host touches what a stream writes or reads, it must wait for that
    stream.

    The zeros are written in the caller's current stream, and the host waits for them.

    Raises:
        CudaUnavailableError: there is no usable device, or the host can't use its managed memory
            while a kernel runs.
        MemoryError: the system refused it.
        RuntimeError: as for `allocate_device`.
    """
    cupy = library()
    refuse_capture("the allocation of memory")
    _check_concurrent(cupy)
    try:
        pointer = cupy.cuda.malloc_managed(max(nbytes, 1))
    except (MemoryError, OverflowError, cupy.cuda.runtime.CUDARuntimeError) as error:
        raise _refused("managed", nbytes, _with_free(error)) from error
    with use_stream() as stream:
        pointer.memset_async(0, nbytes, stream)
        synchronize(stream)
    device_view = cupy.ndarray(nbytes, np.uint8, memptr=pointer)
    return device_view, np.asarray(_HostView(pointer, nbytes))


def free_nbytes() -> int:
    """Return the bytes that new blocks on the current device can have, all together.

    Counts what the driver has free and what the allocator in use keeps for reuse, where it tells
    that: a pool of CuPy, or torch's. Waits for nothing; other processes may take memory at any
    time.

    Raises:
        CudaUnavailableError: there is no usable device.
    """
    cupy = library()
    free: int = cupy.cuda.runtime.memGetInfo()[0]
    allocator: Any = getattr(cupy.cuda.get_allocator(), "__self__", None)  # the owner of `malloc`
    if allocator is torch_allocator(cupy):
        import torch

        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    else:
        kept = allocator.free_bytes() if hasattr(allocator, "free_bytes") else 0
    return free + kept


def total_nbytes() -> int:
    """Return the bytes of memory that the current device has. Starts its context.

    Raises:
        CudaUnavailableError: there is no usable device.
    """
    total: int = library().cuda.runtime.memGetInfo()[1]
    return total


def may_share_memory(one: DeviceArray, other: DeviceArray) -> bool:
    """Tell whether two device arrays overlap, from the lowest byte of each to the highest."""
    is_shared: bool = library().may_share_memory(one, other)
    return is_shared


class _HostView:
    """Managed bytes as NumPy takes them; keeps them alive."""

    def __init__(self, pointer: Any, nbytes: int) -> None:  # Any: cupy's MemoryPointer
        self._pointer = pointer
        self.__array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (int(pointer.ptr), False),
            "version": 3,
        }


def _check_concurrent(cupy: Library) -> None:
    runtime, number = cupy.cuda.runtime, device_number_of(cupy)
    if not runtime.deviceGetAttribute(runtime.cudaDevAttrConcurrentManagedAccess, number):
        raise CudaUnavailableError(
            f"managed memory: the host must not touch it while any kernel of device {number} runs,"
            " which has no concurrent managed access (as under WSL2, and as some virtual GPUs);"
            ' use storage="device", or storage="pinned"'
        )


def _check_free(kind: str, nbytes: int) -> None:
    free = free_nbytes()
    if nbytes > free:
        raise _refused(kind, nbytes, f"{free:,} bytes are free on the device")


def _with_free(error: Exception) -> str:
    return f"{error}; {free_nbytes():,} bytes are free on the device"


def _refused(kind: str, nbytes: int, reason: str) -> MemoryError:
    return MemoryError(
        f"{kind} memory: {nbytes:,} bytes wanted; {reason}; make batch_shape or full_size smaller,"
        " store observations as uint8, or close other trees first"
    )
