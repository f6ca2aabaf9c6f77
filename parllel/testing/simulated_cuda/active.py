"""The simulation that stands in for CuPy now: the names of the stand-in ask it for everything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from parllel.testing.simulated_cuda.engine import Engine
from parllel.testing.simulated_cuda.memory import Memory


class Launch(NamedTuple):
    """A kernel that was launched; it may not have run."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    stream: int


class Device:
    """The parts of one simulation's device.

    Args:
        engine: its streams.
        memory: the memory that it can reach.
        kernels: the functions that run in the place of its kernels, by the kernels' names.
    """

    def __init__(
        self, engine: Engine, memory: Memory, kernels: Mapping[str, Callable[..., None]]
    ) -> None:
        self.engine = engine
        self.memory = memory
        self.kernels = kernels
        self.launches: list[Launch] = []
        self.is_torch_in_order = False
        self.allocator: Callable[[int], Any] | None = None  # Any: a MemoryPointer
        self.thread = _ThreadState()  # the current stream is each thread's own


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.streams = [0]  # addresses; the last one is current


# One at a time, as there is one module of the name cupy in a process.
_devices: list[Device] = []


def device() -> Device:
    """Return the simulated device.

    Raises:
        RuntimeError: the simulation has ended.
    """
    if not _devices:
        raise RuntimeError(
            "simulated CUDA: the simulation has ended; arrays, streams and events of it can't be"
            " used any more"
        )
    return _devices[-1]


def is_active(memory: Memory) -> bool:
    """Tell whether memory is that of the simulated device."""
    return bool(_devices) and _devices[-1].memory is memory


def current_stream() -> int:
    """Return the address of this thread's current stream."""
    return device().thread.streams[-1]


def activate(new: Device) -> None:
    """Make a device the simulated one."""
    if _devices:
        raise RuntimeError(
            "simulated CUDA: a simulation is running already, expected one at a time"
        )
    _devices.append(new)


def deactivate() -> None:
    """Leave the process without a simulated device."""
    _devices.clear()
