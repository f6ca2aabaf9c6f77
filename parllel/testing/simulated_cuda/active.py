"""The simulation that stands in for CuPy now: the names of the stand-in ask it for everything."""

from __future__ import annotations

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
    device: int = 0


class Machine:
    """The parts of one simulation, which its devices share.

    Args:
        engine: the streams of the devices.
        memory: the memory that they can reach.
        kernels: the functions that run in the place of their kernels, by the kernels' names.
        n_devices: how many devices there are.
    """

    def __init__(
        self,
        engine: Engine,
        memory: Memory,
        kernels: Mapping[str, Callable[..., None]],
        n_devices: int = 1,
    ) -> None:
        self.engine = engine
        self.memory = memory
        self.kernels = kernels
        self.n_devices = n_devices
        self.launches: list[Launch] = []
        self.is_torch_in_order = False
        self.allocator: Callable[[int], Any] | None = None  # Any: a MemoryPointer
        self.thread = engine.thread


# One at a time, as there is one module of the name cupy in a process.
_machines: list[Machine] = []


def machine() -> Machine:
    """Return what is simulated now.

    Raises:
        RuntimeError: the simulation has ended.
    """
    if not _machines:
        raise RuntimeError(
            "simulated CUDA: the simulation has ended; arrays, streams and events of it can't be"
            " used any more"
        )
    return _machines[-1]


def is_active(memory: Memory) -> bool:
    """Tell whether memory is that of the running simulation."""
    return bool(_machines) and _machines[-1].memory is memory


def current_stream() -> int:
    """Return the address of this thread's current stream."""
    return machine().thread.stream


def activate(new: Machine) -> None:
    """Let a simulation begin."""
    if _machines:
        raise RuntimeError(
            "simulated CUDA: a simulation is running already, expected one at a time"
        )
    _machines.append(new)


def deactivate() -> None:
    """Leave the process without a simulation."""
    _machines.clear()
