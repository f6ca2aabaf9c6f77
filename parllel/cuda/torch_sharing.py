"""Sharing with torch: device memory as tensors, and one allocator for both."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from parllel.cuda.devices import check_current
from parllel.cuda.library import CudaUnavailableError, DeviceArray, Library, library
from parllel.cuda.streams import current_stream, order_streams, use_stream

if TYPE_CHECKING:
    import torch

_DLPACK_CPU = 1  # kDLCPU: simulated CUDA, whose tensors are the host's
_DLPACK_MANAGED = 13  # kDLCUDAManaged


def tensor_over(array: DeviceArray) -> torch.Tensor:
    """Return a torch tensor over the memory of a device array, which the tensor keeps alive.

    Nothing is copied, and the host waits for nothing. Work in torch's current stream comes after
    all that is in the caller's, also where this call is the first to start CUDA in torch.

    Raises:
        CudaUnavailableError: torch can use no device; its build may be for CPUs.
        BufferError: torch has no such dtype, or takes no memory of this kind.
        RuntimeError: it is memory of another device than the current one.
        ValueError: a stride is negative, which torch does not know.
    """
    import torch
    from torch.utils.dlpack import from_dlpack

    if any(stride < 0 for stride in array.strides):  # torch 2.13 ends the process: issue 188023
        raise ValueError(
            f"to_torch: torch can't share strides {array.strides}; index with a positive step, or"
            " copy the values on the device first: to_cupy().copy()"
        )
    check_current(array)
    kind, number = array.__dlpack_device__()
    if kind == _DLPACK_CPU:
        return from_dlpack(array)
    _check_torch_has_a_device()
    with use_stream() as before:
        if kind != _DLPACK_MANAGED:
            return from_dlpack(array)
        # torch refuses it by DLPack, and without the number would copy to its current device.
        tensor = torch.as_tensor(array, device=f"cuda:{number}")
    order_streams(before, current_stream())  # by the array interface torch asks for no order
    return tensor


def use_torch_allocator() -> None:
    """Let torch's caching allocator own the device memory that is allocated from now on.

    Then one program keeps one pool: what parllel and CuPy free can be torch's next tensor, and
    `torch.cuda.memory_allocated` counts it. CuPy's pool gives the driver back what it keeps;
    arrays that exist stay where they are. Call it before the first allocation.

    A block belongs to the stream that is CuPy's current one when it is allocated, which for
    parllel's own is the caller's. It can be used again as soon as that stream gets there: keep the
    array while another stream uses it.

    This starts CUDA in torch, whose current stream is the caller's from then on.

    Raises:
        CudaUnavailableError: there is no usable device, or torch has none.
    """
    cupy = library()
    import torch

    _check_torch_has_a_device()
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's gap
    cupy.cuda.set_allocator(torch_allocator(cupy).malloc)
    cupy.get_default_memory_pool().free_all_blocks()


@functools.lru_cache(maxsize=1)
def torch_allocator(cupy: Library) -> Any:  # Any: cupy.cuda.PythonFunctionAllocator
    """Return the allocator that takes device memory from torch's: one for each CuPy."""
    return cupy.cuda.PythonFunctionAllocator(_allocate, _free)


def _check_torch_has_a_device() -> None:
    import torch

    if torch.cuda.is_available():
        return
    build = "a build for CPUs" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
    raise CudaUnavailableError(
        f"torch sees no CUDA device: it is {torch.__version__}, {build}, and the memory is CUDA's;"
        " install a build of torch for CUDA, or use to_cupy(), or copy the values to the host with"
        " to_ndarray()"
    )


def _allocate(nbytes: int, device: int) -> int:
    import torch

    # The memory is for CuPy's work, in CuPy's current stream: others need an event to use it.
    stream = library().cuda.get_current_stream().ptr
    try:
        address: int = torch.cuda.caching_allocator_alloc(nbytes, device, stream)
    except torch.cuda.OutOfMemoryError as error:  # a RuntimeError
        raise MemoryError(str(error)) from error
    return address


def _free(address: int, device: int) -> None:
    import torch

    torch.cuda.caching_allocator_delete(address)  # type: ignore[no-untyped-call]  # torch's gap
