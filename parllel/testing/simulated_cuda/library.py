"""The module that takes CuPy's place: exactly the names that parllel.cuda uses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from parllel.testing.simulated_cuda import (
    allocators,
    array,
    array_makers,
    kernels,
    runtime,
    streams,
)
from parllel.testing.simulated_cuda.memory import Memory

_RUNTIME = {
    name: getattr(runtime, name)
    for name in (
        "CUDARuntimeError",
        "PointerAttributes",
        "cudaDevAttrConcurrentManagedAccess",
        "deviceGetAttribute",
        "deviceSynchronize",
        "driverGetVersion",
        "getDevice",
        "getDeviceCount",
        "hostRegister",
        "memcpyAsync",
        "memGetInfo",
        "pointerGetAttributes",
        "runtimeGetVersion",
        "streamIsCapturing",
    )
}
_CUDA = {
    "Device": streams.Device,
    "Event": streams.Event,
    "Graph": streams.Graph,
    "MemoryPointer": allocators.MemoryPointer,
    "PythonFunctionAllocator": allocators.PythonFunctionAllocator,
    "Stream": streams.Stream,
    "UnownedMemory": allocators.UnownedMemory,
    "get_allocator": allocators.get_allocator,
    "get_current_stream": streams.get_current_stream,
    "malloc_managed": allocators.malloc_managed,
    "set_allocator": allocators.set_allocator,
}
_CUPY = {
    "RawModule": kernels.RawModule,
    "asarray": array_makers.asarray,
    "empty": array_makers.empty,
    "from_dlpack": array_makers.from_dlpack,
    "get_default_memory_pool": allocators.get_default_memory_pool,
    "may_share_memory": array_makers.may_share_memory,
    "ndarray": array.ndarray,
}


def make_library(memory: Memory | None = None) -> ModuleType:
    """Return a new module cupy, with cupy.cuda and cupy.cuda.runtime in it.

    Args:
        memory: that of the simulation that it is for; by default it serves all simulations, one
            after the other.
    """
    unregister = {"hostUnregister": runtime.make_host_unregister(memory)}
    runtime_module = _module("cupy.cuda.runtime", _RUNTIME | unregister)
    cuda_module = _module("cupy.cuda", _CUDA | {"runtime": runtime_module})
    return _module("cupy", _CUPY | {"cuda": cuda_module})


def install(library: ModuleType) -> dict[str, ModuleType]:
    """Put a module into CuPy's place and return what was there."""
    former = {name: sys.modules.pop(name) for name in _loaded()}
    for module in (library, library.cuda, library.cuda.runtime):
        sys.modules[module.__name__] = module
    return former


def restore(former: Mapping[str, ModuleType]) -> None:
    """Put CuPy back into its place."""
    for name in _loaded():
        del sys.modules[name]
    sys.modules.update(former)


def _loaded() -> list[str]:
    """Return the names of CuPy's modules. cupyx loads itself lazily and needs the real cupy."""
    names = [name for name in sys.modules if name.startswith("cupy")]
    return [name for name in names if name.partition(".")[0] in ("cupy", "cupyx")]


def _module(name: str, names: Mapping[str, Any]) -> ModuleType:
    module = ModuleType(name, "A stand-in for CuPy: parllel.testing.simulated_cuda.")
    module.__dict__.update(names)

    def missing(attribute: str) -> Any:
        raise AttributeError(
            f"simulated CUDA: the stand-in has no {name}.{attribute}; it has what parllel.cuda"
            f" uses: {', '.join(sorted(names))}"
        )

    module.__dict__["__getattr__"] = missing
    return module
