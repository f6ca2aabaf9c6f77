"""Timing on a GPU: by the device's events, with its caches emptied and its queue filled before."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from parllel import cuda

# 4 times the largest L2 cache that there is: reading as much leaves nothing else in it.
FLUSH_NBYTES = 2**29
# Together they take 0.6 ms at 3.4 TB/s, and longer on other GPUs, while the host queues a call.
N_FLUSHES = 4


class DeviceSample(NamedTuple):
    """One call.

    Args:
        device_s: from the first to the last work of the call, on the device.
        call_s: until the call returned, on the host.
        is_queued: all work was queued before the first began.
    """

    device_s: float
    call_s: float
    is_queued: bool


class DeviceTimer:
    """Takes samples of work that goes to the caller's current stream.

    Args:
        flush_nbytes: what is read before each sample, some times; more than the device's cache.

    Raises:
        CudaUnavailableError: there is no usable device.
    """

    def __init__(self, *, flush_nbytes: int = FLUSH_NBYTES) -> None:
        self.flush_nbytes = flush_nbytes
        # Reading leaves clean lines. Those of a write would be written back during the sample.
        self._lines = cuda.tensor_over(cuda.allocate_device(flush_nbytes)).view(torch.float32)
        self._start, self._end = _new_event(), _new_event()

    def flush(self) -> None:
        """Queue work that empties the caches. Returns at once."""
        for _ in range(N_FLUSHES):
            self._lines.sum()

    def sample(self, call: Callable[[], object]) -> DeviceSample:
        """Time a call. The host waits for it."""
        stream = cuda.current_stream()
        self.flush()
        self._start.record(stream)
        begun = time.perf_counter()
        call()
        call_s = time.perf_counter() - begun
        self._end.record(stream)
        is_queued = not self._start.done
        self._end.synchronize()
        return DeviceSample(elapsed_s(self._start, self._end), call_s, is_queued)


def elapsed_s(start: Any, end: Any) -> float:  # Any: cupy.cuda.Event
    """Return the time between two events. Only a GPU tells it; tests replace this function."""
    milliseconds: float = cuda.library().cuda.get_elapsed_time(start, end)
    return milliseconds * 1e-3


def _new_event() -> Any:  # Any: as above
    return cuda.library().cuda.Event()  # with a time stamp, unlike those of parllel.cuda
