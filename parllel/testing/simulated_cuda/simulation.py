"""simulated_cuda: the context in which a simulated device takes the place of a real one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from parllel.cuda import Counters
from parllel.testing.simulated_cuda import active
from parllel.testing.simulated_cuda.active import Launch, Machine
from parllel.testing.simulated_cuda.engine import Engine
from parllel.testing.simulated_cuda.library import install, make_library, restore
from parllel.testing.simulated_cuda.memory import Memory
from parllel.testing.simulated_cuda.schedules import make_schedule
from parllel.testing.simulated_cuda.torch_order import torch_in_order
from parllel.testing.simulated_cuda.twins import Twin, own_twins

_CAPACITY = 2**32  # bytes


class Simulation:
    """A running simulation, as a test sees it.

    >>> from parllel import Array
    >>> with simulated_cuda("lazy") as simulation:
    ...     array = Array((4, 3), "f4", storage="device")
    ...     array[...] = 1
    ...     print(simulation.n_pending > 0)  # nothing has waited for the write
    True

    Args:
        machine: the simulated devices.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @property
    def counters(self) -> Counters:
        """Counts of all work that reached the device, also of work that did not go through parllel.

        A copy for which the host waits counts as a synchronization of its stream.
        """
        return self._machine.engine.counters

    @property
    def launches(self) -> Sequence[Launch]:
        """The kernels that were launched, in the order of the launches."""
        return self._machine.launches

    @property
    def n_operations(self) -> int:
        """Number of launches, copies and writes that were queued in all streams so far.

        Operations from array to array on the device count too, whichever library asked for them.
        Those of torch do not: on a simulated device its tensors are the host's. A graph is one
        operation each time that it is launched.
        """
        return self._machine.engine.n_operations

    @property
    def n_pending(self) -> int:
        """Number of operations that were queued and have not run."""
        return self._machine.engine.n_pending

    @property
    def used_nbytes(self) -> int:
        """Bytes of device and managed memory that are allocated, of all devices."""
        self._machine.memory.collect()
        return self._machine.memory.used

    def check(self, address: int, nbytes: int, name: str) -> None:
        """Raise unless the device may use these bytes; for twins that take addresses.

        Raises:
            UseAfterFreeError: they were freed, or their pages unlocked.
            OutOfBoundsError: no block of device memory and no locked pages hold all of them.
        """
        self._machine.memory.check(address, nbytes, name)

    def assert_no_leaks(self) -> None:
        """Run all work; raise if a block is still allocated, or host memory still locked.

        Raises:
            LeakError: with the list of what is left, and where it comes from.
        """
        self._machine.memory.assert_no_leaks()


@contextmanager
def simulated_cuda(
    schedule: str = "random",
    seed: int = 0,
    *,
    kernels: Mapping[str, Twin] | None = None,
    capacity: int = _CAPACITY,
    n_devices: int = 1,
) -> Iterator[Simulation]:
    """Let simulated devices on host memory take the place of CuPy and its GPUs, by default one.

    Work is queued for each stream, and runs when the schedule says so. A program that forgets to
    wait reads old values, new memory reads as 0xFF bytes, freed memory as 0xFE, and using it
    raises. The default stream is the legacy one. At the end all work runs, and what was written
    beside a block or into freed memory raises.

    While it runs, `import cupy` gives the stand-in in the whole process. Only one simulation can
    run at a time.

    >>> import numpy as np
    >>> from parllel import cuda
    >>> with simulated_cuda("lazy") as simulation:
    ...     array = cuda.to_device(np.arange(3))
    ...     n_waiting = simulation.n_pending
    ...     numbers = cuda.to_host(array)  # waits for the copy to the device, too
    >>> n_waiting, numbers.tolist()
    (1, [0, 1, 2])

    Args:
        schedule: "eager": work runs at once. "lazy": work runs when the host waits for it, and
            what it needs before. "random": in any order that CUDA's rules allow.
        seed: seed of the random order.
        kernels: functions that launches run, by the kernels' names, beside parllel's own. They
            are called with grid, block and the launch's arguments: NumPy's view of the memory for
            an array, the address for a pointer, and all else as it was given.
        capacity: bytes of memory that each device has.
        n_devices: how many devices there are. Work of one that touches memory of another one
            raises `WrongDeviceError`.

    Raises:
        SimulationError: the program used memory wrongly; from the call during which it showed.
    """
    engine = Engine(make_schedule(schedule, seed))
    twins = {**own_twins(), **(kernels or {})}
    machine = Machine(engine, Memory(engine, capacity), twins, n_devices)
    former = None
    active.activate(machine)
    try:
        former = install(make_library(machine.memory))
        with torch_in_order(machine):
            yield Simulation(machine)
        machine.memory.collect()
        engine.wait_for_all()
        machine.memory.check_all()
    finally:
        active.deactivate()
        if former is not None:
            restore(former)
