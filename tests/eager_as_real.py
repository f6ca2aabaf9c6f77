"""A pytest plugin: an eager simulation passes for the GPU that `--cuda=real` asks for.

So what `make test-gpu` selects can be run where there is no GPU: `-p eager_as_real`. Tensors that
lie in device memory, and what is computed from them, are kept apart from others as on a GPU,
though torch has all of them on the CPU: no operation takes both, and NumPy takes none of them.
"""

from collections.abc import Generator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from parllel.testing.simulated_cuda import active, simulated_cuda

# Operations that take tensors of both sides: copies, and indices of the host.
_TAKES_BOTH = ("aten.copy_", "aten._to_copy", "aten.index.", "aten.index_put")

_configuration = ExitStack()


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Let conftest.py find a device."""
    _configuration.enter_context(simulated_cuda("eager"))
    patch = _configuration.enter_context(pytest.MonkeyPatch.context())
    patch.setattr(torch.cuda, "is_available", lambda: True)


def pytest_sessionstart() -> None:
    _configuration.close()  # tests are collected without it: some look for CuPy itself


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Generator[None, object, object]:
    with simulated_cuda("eager"), Operations(), Values():
        return (yield)


def is_on_device(tensor: Tensor) -> bool:
    known: bool | None = getattr(tensor, "is_on_device", None)
    if known is not None:
        return known
    region = active.machine().memory.find(tensor.untyped_storage().data_ptr())
    return region is not None and region.kind != "page-locked"


class Operations(TorchDispatchMode):
    """Refuses operations of tensors of both sides; the result is on the side of its sources."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        sides = {is_on_device(tensor) for tensor in tensors if tensor.ndim}
        if len(sides) > 1 and not str(func).startswith(_TAKES_BOTH):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        result = func(*args, **(kwargs or {}))
        if any(map(is_on_device, tensors)):
            for leaf in tree_iter(result):
                if isinstance(leaf, Tensor):
                    leaf.is_on_device = True  # type: ignore[attr-defined]  # a mark of its own
        return result


class Values(TorchFunctionMode):
    """Refuses NumPy tensors of the device; `tensor.cpu()` is one of the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_for_numpy = func in (Tensor.numpy, Tensor.__array__) and not kwargs.get("force")
        if is_for_numpy and is_on_device(args[0]):
            raise TypeError("can't convert a tensor of the device to numpy: use tensor.cpu()")
        result = func(*args, **kwargs)
        if func is Tensor.cpu:
            result.is_on_device = False
        return result
