"""What is shared with torch: device memory as tensors, and one allocator for both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parllel.cuda.library import CudaUnavailableError, DeviceArray, library
from parllel.cuda.streams import current_stream

if TYPE_CHECKING:
    import torch

_DLPACK_MANAGED = 13  # kDLCUDAManaged


def tensor_over(array: DeviceArray) -> torch.Tensor:
    """Return a torch tensor over the memory of a device array, which the tensor keeps alive.

    Nothing is copied. Work in torch's current stream comes after all that is in the caller's.

    Raises:
        BufferError, TypeError, ValueError: torch can't express the strides or the dtype.
    """
    import torch
    from torch.utils.dlpack import from_dlpack

    if array.__dlpack_device__()[0] == _DLPACK_MANAGED:  # torch refuses it by DLPack
        return torch.as_tensor(array, device="cuda")
    return from_dlpack(array)


def use_torch_allocator() -> None:
    """Let torch's caching allocator own the device memory that is allocated from now on.

    CuPy's pool gives the driver back what it keeps; arrays that exist stay where they are. Calling
    this before the first allocation leaves one pool in the program.

    Raises:
        CudaUnavailableError: there is no usable device, or torch has none.
    """
    cupy = library()
    import torch

    if not torch.cuda.is_available():
        raise CudaUnavailableError(
            "use_torch_allocator: torch sees no CUDA device (its build may be for CPUs); leave"
            " the allocator as it is, or install a CUDA build of torch"
        )
    cupy.cuda.set_allocator(cupy.cuda.PythonFunctionAllocator(_allocate, _free).malloc)
    cupy.get_default_memory_pool().free_all_blocks()


def _allocate(nbytes: int, device: int) -> int:
    import torch

    # The stream that the block belongs to: others may not use it without an event.
    address: int = torch.cuda.caching_allocator_alloc(nbytes, device, current_stream().ptr)
    return address


def _free(address: int, device: int) -> None:
    import torch

    torch.cuda.caching_allocator_delete(address)  # type: ignore[no-untyped-call]  # torch's gap
