"""Launching the kernels of `kernels/parllel.ptx` by name."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import parllel.kernels
from parllel.cuda.counters import counters
from parllel.cuda.devices import another_device
from parllel.cuda.library import DeviceArray, Library, Stream, library
from parllel.cuda.streams import AnyStream, as_stream, current_stream_of, in_cupy

PTX = Path(parllel.kernels.__file__).with_name("parllel.ptx")


def launch(
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    args: Sequence[np.generic | DeviceArray],
    *,
    stream: AnyStream | None = None,
) -> Stream:
    """Queue a kernel in a stream, the caller's current one by default. Returns at once.

    CuPy loads the module on the first launch on each device, which takes milliseconds. The
    memory behind the arguments must stay as it is until the kernel has run: device memory that
    goes back to the pool earlier is safe only if it belongs to the same stream.

    Args:
        name: name of an entry in the PTX module.
        grid, block: blocks, and threads of a block; one to three numbers each.
        args: NumPy scalars of exactly the entry's types, an address as `numpy.int64`; or device
            arrays, of which the kernel gets the address.
        stream: where the kernel is queued.

    Returns:
        The stream where it was queued, as CuPy's kind: an event behind the kernel goes there.

    Raises:
        CudaUnavailableError: there is no usable device.
        RuntimeError: an array is memory of another device than the current one.
        TypeError: a plain Python number; its type would be a guess.
    """
    cupy = library()
    current = cupy.cuda.runtime.getDevice()
    for number, argument in enumerate(args):
        if isinstance(argument, bool | int | float) and not isinstance(argument, np.generic):
            raise TypeError(
                f"{name}: argument {number} is {argument!r}, a {type(argument).__name__}; expected"
                " a NumPy scalar of the kernel's own type, such as numpy.int64"
            )
        owner = current if isinstance(argument, np.generic) else argument.data.device_id
        if owner != current:
            raise another_device(f"{name}: argument {number}", owner, current)
    kernel = _kernel(cupy, name)
    counters.launches += 1
    used = current_stream_of(cupy) if stream is None else as_stream(stream)
    with in_cupy(cupy, used):  # torch's current stream may be another one: it queues nothing
        kernel(grid, block, tuple(args))
    return used


@functools.lru_cache(maxsize=64)  # far more than there are kernels
def _kernel(cupy: Library, name: str) -> Any:  # Any: cupy.RawKernel; one for all devices
    return _module(cupy).get_function(name)


@functools.lru_cache(maxsize=1)
def _module(cupy: Library) -> Any:  # Any: cupy.RawModule
    return cupy.RawModule(path=str(PTX))
