"""Torch's place in the order of a simulated stream: its CPU tensors stand for those of a GPU.

On a GPU torch queues its work in the current stream, behind parllel's. In a simulation it
computes at once, on the host. So that both mean the same, the current stream's work runs before
each of torch's operations that touches device memory, and the rest of the device may lag behind.
Not seen are `tensor.numpy()`, which a GPU's tensor refuses, and `tensor.cpu()`, which makes no copy
here: take values out with `tensor.tolist()`, `tensor.item()` or `tensor.clone()`.
"""

from __future__ import annotations

import functools
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from parllel.testing.simulated_cuda.active import Device


def torch_in_order(device: Device) -> AbstractContextManager[object]:
    """Return a context in which torch's operations of this thread take their place in the order.

    It does nothing where torch was not imported before.
    """
    device.is_torch_in_order = "torch" in sys.modules
    return _mode_class()(device) if device.is_torch_in_order else nullcontext()


@functools.cache
def _mode_class() -> Any:  # Any: a class of torch's, which is not imported before it is needed
    from torch import Tensor
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
            if self._device.engine.n_pending:
                tensors = (leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor))
                if any(_is_of_device(self._device, tensor) for tensor in tensors):
                    _join(self._device, str(func))
            return func(*args, **kwargs)

    return InOrder


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
