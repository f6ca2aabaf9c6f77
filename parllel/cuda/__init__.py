"""The CUDA layer: the one part of the package that talks to CuPy; no Array, no kind of memory.

Importing it imports neither CuPy nor torch nor NVML, and starts nothing. A stream is a queue of
work on a GPU, which runs in the order in which it was queued. All work goes to the caller's
current stream (`current_stream`) unless a stream is given, and no function waits for the whole
device unless it says so. Docstrings say what a function waits for, and what owns the memory.
"""

from parllel.cuda.capturing import is_capturing, refuse_capture
from parllel.cuda.copies import copy_to_device, copy_to_host, to_device, to_host
from parllel.cuda.counters import Counters, counters
from parllel.cuda.description import describe
from parllel.cuda.devices import check_current, device_number, use_device
from parllel.cuda.exchange import (
    array_by_dlpack,
    array_interface,
    array_over,
    hand_over,
    is_device_array,
)
from parllel.cuda.gpu_usage import GpuUsage
from parllel.cuda.launches import launch
from parllel.cuda.library import (
    AnyArray,
    CudaUnavailableError,
    DeviceArray,
    Stream,
    is_available,
    library,
    why_unavailable,
)
from parllel.cuda.memory import (
    allocate_device,
    allocate_managed,
    free_nbytes,
    may_share_memory,
    total_nbytes,
)
from parllel.cuda.page_lock import PageLock
from parllel.cuda.streams import (
    Event,
    current_stream,
    device_of,
    new_stream,
    order_streams,
    synchronize,
    use_stream,
)
from parllel.cuda.torch_sharing import tensor_over, use_torch_allocator

__all__ = [
    "AnyArray",
    "Counters",
    "CudaUnavailableError",
    "DeviceArray",
    "Event",
    "GpuUsage",
    "PageLock",
    "Stream",
    "allocate_device",
    "allocate_managed",
    "array_by_dlpack",
    "array_interface",
    "array_over",
    "check_current",
    "copy_to_device",
    "copy_to_host",
    "counters",
    "current_stream",
    "describe",
    "device_number",
    "device_of",
    "free_nbytes",
    "hand_over",
    "is_available",
    "is_capturing",
    "is_device_array",
    "launch",
    "library",
    "may_share_memory",
    "new_stream",
    "order_streams",
    "refuse_capture",
    "synchronize",
    "tensor_over",
    "to_device",
    "to_host",
    "total_nbytes",
    "use_device",
    "use_stream",
    "use_torch_allocator",
    "why_unavailable",
]
