"""Torch's place in the order of a simulated stream: its CPU tensors stand for those of a GPU.

On a GPU torch queues its work in the current stream, behind parllel's. In a simulation it
computes at once, on the host. So that both mean the same, the current stream's work runs before
each of torch's operations that touches device memory, and the rest of the device may lag behind.
What brings values to the host waits for that work too: `tolist`, `item`, `cpu` (a copy),
`numpy(force=True)`, and printing. `tensor.numpy()` is refused, as a GPU's tensor refuses it.
"""

from __future__ import annotations

import functools
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from parllel.testing.simulated_cuda.active import Device
from parllel.testing.simulated_cuda.torch_graphs import (
    is_recorded,
    record,
    refuse_values,
    torch_graphs,
)

BUILT_IN = ("aten", "prim", "prims")  # torch's own operators


def torch_in_order(device: Device) -> AbstractContextManager[object]:
    """Return a context in which torch's operations of this thread take their place in the order.

    It does nothing where torch was not imported before.
    """
    device.is_torch_in_order = "torch" in sys.modules
    if not device.is_torch_in_order:
        return nullcontext()
    modes = ExitStack()
    modes.enter_context(torch_graphs())
    modes.enter_context(_operations_mode()(device))
    modes.enter_context(_values_mode()(device))
    return modes


@functools.cache
def _operations_mode() -> Any:  # Any: a class of torch's, which is not imported before it is needed
    from torch import Tensor
    from torch._C import DispatchKey
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class InOrder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's gap
        def __init__(self, device: Device) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self._device = device

        def __torch_dispatch__(  # type: ignore[no-untyped-def]  # as torch declares it
            self, func, types, args=(), kwargs=None
        ) -> Any:
            kwargs = kwargs or {}
            # Another library's operator computes at once what a GPU's would launch, as if it were
            # torch's. One that writes in place may launch kernels here, too, as `ReplayDraw` does.
            is_whole = func.namespace in BUILT_IN or not func._schema.is_mutable
            if is_whole and is_recorded(self._device):
                return record(func, args, kwargs)
            if self._device.engine.n_pending:
                tensors = (leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor))
                if any(_is_of_device(self._device, tensor) for tensor in tensors):
                    _join(self._device, str(func))
            # Operators of torch's profiler have no such kernel: called by its key, they crash.
            has_kernel = func.has_kernel_for_dispatch_key(DispatchKey.CPU)
            if func.namespace in BUILT_IN or not has_kernel:
                return func(*args, **kwargs)
            with self:  # what another library's operator asks torch for has its own place
                return func._op_dk(DispatchKey.CPU, *args, **kwargs)

    return InOrder


@functools.cache
def _values_mode() -> Any:  # Any: as above
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    readers = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu, Tensor.__repr__)

    class ValuesInOrder(TorchFunctionMode):
        def __init__(self, device: Device) -> None:
            super().__init__()
            self._device = device

        def __torch_function__(  # type: ignore[no-untyped-def]  # as torch declares it
            self, func, types, args=(), kwargs=None
        ) -> Any:
            kwargs = kwargs or {}
            is_reading = func in readers
            if is_reading and is_recorded(self._device):
                refuse_values()
            if is_reading and _is_of_device(self._device, args[0]):
                return self._read(func, *args, **kwargs)
            return func(*args, **kwargs)

        def _read(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:  # as above
            if func in (Tensor.numpy, Tensor.__array__) and not kwargs.get("force"):
                raise TypeError(
                    "simulated CUDA: a tensor in device memory can't be converted to numpy; copy"
                    " it to the host first, with tensor.cpu()"
                )
            host = tensor.detach().clone()  # an operation, so that it takes its place in the order
            return host if func is Tensor.cpu else func(host, *args, **kwargs)

    return ValuesInOrder


def check_torch_is_in_order(device: Device) -> None:
    """Raise where device memory may be handed to a torch that is not in order."""
    if "torch" in sys.modules and not device.is_torch_in_order:
        raise RuntimeError(
            "simulated CUDA: torch was imported after the simulation began, so that its place in"
            " the order of the streams is not known; import torch before"
        )


def _is_of_device(device: Device, tensor: Any) -> bool:
    region = device.memory.find(tensor.untyped_storage().data_ptr())
    return region is not None and region.kind != "page-locked"


def _join(device: Device, name: str) -> None:
    engine = device.engine
    engine.wait(engine.queue(device.thread.streams[-1], f"torch: {name}"))
