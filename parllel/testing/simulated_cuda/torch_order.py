"""Torch's place in the order of simulated streams: its CPU tensors stand for those of a GPU.

On a GPU torch queues its work in the current stream, behind parllel's. In a simulation it
computes at once, on the host. So that both mean the same, the current stream's work runs before
each of torch's operations that touches device memory, and the rest of the device may lag behind.
That is the current stream of the device that has the memory, whichever device is the current one.
What brings values to the host waits for that work too: `tolist`, `item`, `cpu` (a copy),
`numpy(force=True)`, and printing. `tensor.numpy()` is refused, as a GPU's tensor refuses it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from parllel.testing.simulated_cuda.active import Machine
from parllel.testing.simulated_cuda.torch_graphs import (
    is_recorded,
    record,
    refuse_values,
    torch_graphs,
)

_BETWEEN_DEVICES = ("aten::copy_", "aten::_to_copy")  # those that move values when asked to
BUILT_IN = ("aten", "prim", "prims")  # torch's own operators


def torch_in_order(machine: Machine) -> AbstractContextManager[object]:
    """Return a context in which torch's operations of this thread take their place in the order.

    It does nothing where torch was not imported before.
    """
    machine.is_torch_in_order = "torch" in sys.modules
    if not machine.is_torch_in_order:
        return nullcontext()
    modes = ExitStack()
    modes.enter_context(torch_graphs())
    modes.enter_context(_operations_mode()(machine))
    modes.enter_context(_values_mode()(machine))
    return modes


@functools.cache
def _operations_mode() -> Any:  # Any: a class of torch's, which is not imported before it is needed
    from torch import Tensor
    from torch._C import DispatchKey
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class InOrder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's gap
        def __init__(self, machine: Machine) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self._machine = machine

        def __torch_dispatch__(  # type: ignore[no-untyped-def]  # as torch declares it
            self, func, types, args=(), kwargs=None
        ) -> Any:
            kwargs = kwargs or {}
            # Another library's operator computes at once what a GPU's would launch, as if it were
            # torch's. One that writes in place may launch kernels here, too, as `ReplayDraw` does.
            is_whole = func.namespace in BUILT_IN or not func._schema.is_mutable
            if is_whole and is_recorded(self._machine):
                return record(func, args, kwargs)
            if self._machine.engine.n_pending or self._machine.n_devices > 1:
                leaves = tree_iter((args, kwargs))
                tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
                _join(self._machine, func, tensors)
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
        def __init__(self, machine: Machine) -> None:
            super().__init__()
            self._machine = machine

        def __torch_function__(  # type: ignore[no-untyped-def]  # as torch declares it
            self, func, types, args=(), kwargs=None
        ) -> Any:
            kwargs = kwargs or {}
            is_reading = func in readers
            if is_reading and is_recorded(self._machine):
                refuse_values()
            if is_reading and _device_of(self._machine, args[0]) is not None:
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


def check_torch_is_in_order(machine: Machine) -> None:
    """Raise where device memory may be handed to a torch that is not in order."""
    if "torch" in sys.modules and not machine.is_torch_in_order:
        raise RuntimeError(
            "simulated CUDA: torch was imported after the simulation began, so that its place in"
            " the order of the streams is not known; import torch before"
        )


def _device_of(machine: Machine, tensor: Any) -> int | None:
    """Return the number of the device that has a tensor; None for one of the host."""
    region = machine.memory.find(tensor.untyped_storage().data_ptr())
    return None if region is None or region.kind == "page-locked" else region.device


def _join(machine: Machine, function: Any, tensors: Iterable[Any]) -> None:  # Any: torch's
    """Run what is before an operation of torch in the streams of its tensors' devices."""
    found = {_device_of(machine, tensor) for tensor in tensors}
    numbers = sorted(number for number in found if number is not None)
    if len(numbers) > 1 and function.name() not in _BETWEEN_DEVICES:
        raise RuntimeError(
            f"{function}: Expected all tensors to be on the same device, but found at least two"
            f" devices, {' and '.join(f'cuda:{number}' for number in numbers)}!"
        )
    for number in numbers:
        stream = machine.thread.stream_of(number)
        mark = machine.engine.queue(stream, f"torch: {function}", device=number)
        machine.engine.wait(mark)
