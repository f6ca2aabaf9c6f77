"""What single calls cost the host on a machine with a GPU: the parts of a time step."""

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from parllel import Array, cuda
from parllel.ops.row_copy import RowCopy
from support.device_report import DeviceReport
from support.timing import interleave

N_LEAVES, B = 6, 8
CALLS_IN_QUEUE = 64  # so many calls are queued at most before the host waits for them

TORCH = "torch, tensor.add_"


def race_host_calls(report: DeviceReport, *, repeats: int) -> None:
    """Add a table of calls to a report: the host's time alone, until a call returns."""
    with ExitStack() as stack:
        calls = {name: drained(call) for name, call in host_calls(stack).items()}
        seconds = interleave(calls, repeats=repeats)
        cuda.synchronize()
    report.add_table("host time of single calls", seconds, references=[TORCH])


def host_calls(stack: ExitStack) -> dict[str, Callable[[], object]]:
    """Return the calls by name; the stack closes what they use."""
    device = stack.enter_context(Array((B,), np.float32, storage="device"))
    pinned = stack.enter_context(Array((B,), np.float32, storage="pinned"))
    read, written = ([cuda.to_device(np.zeros((B, 16))) for _ in range(N_LEAVES)] for _ in range(2))
    slot, host = cuda.to_device(np.zeros(B, np.float32)), pinned.to_ndarray()
    tensor, event = cuda.tensor_over(slot), cuda.Event()
    copy, rows = RowCopy(written, read), range(B)
    return {
        "cuda.current_stream": cuda.current_stream,
        "cuda.use_stream": enter_stream,
        f"RowCopy.run of {N_LEAVES} leaves": lambda: copy.run(rows, rows),
        "array.to_torch": device.to_torch,
        "array[...] = tensor": lambda: device.__setitem__(..., tensor),
        "event.record": event.record,
        "event.query": event.query,
        "cuda.copy_to_host, pinned": lambda: cuda.copy_to_host(slot, out_host=host),
        TORCH: lambda: tensor.add_(1),
    }


def enter_stream() -> None:
    with cuda.use_stream():
        pass


def drained(call: Callable[[], object]) -> Callable[[], object]:
    """Return a call that waits for the device now and then: a full queue makes calls wait.

    That adds a part of a wait to each call, the same for all.
    """
    n_queued = 0

    def counted_call() -> None:
        nonlocal n_queued
        call()
        n_queued += 1
        if n_queued == CALLS_IN_QUEUE:
            cuda.synchronize()
            n_queued = 0

    return counted_call
