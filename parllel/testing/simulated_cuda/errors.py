"""Errors of a simulation, for programs that a GPU would punish, or whose faults it would hide."""


class SimulationError(RuntimeError):
    """The program is wrong, though a GPU might not show it; the notes say where work was queued.

    The errors below are of this class, so that a test can expect any of them:

    >>> issubclass(LeakError, SimulationError)
    True
    """


class UseAfterFreeError(SimulationError):
    """Work touches device memory that was freed, or host memory that was unlocked.

    >>> import numpy as np
    >>> from parllel import cuda
    >>> from parllel.testing.simulated_cuda import simulated_cuda
    >>> with simulated_cuda("lazy"):
    ...     lock = cuda.PageLock(np.zeros(8, np.uint8))
    ...     copied = lock.device_view().copy()
    ...     lock.release()  # before the copy was made
    ...     cuda.synchronize()
    Traceback (most recent call last):
    parllel.testing.simulated_cuda.errors.UseAfterFreeError: ...
    """


class WrongDeviceError(SimulationError):
    """Work of one device touches memory of another one.

    Where two GPUs can reach each other's memory this would be slow, and wait for none of the work
    of the memory's own device; elsewhere CUDA refuses it, or it ends the process.

    >>> from parllel.testing.simulated_cuda import simulated_cuda
    >>> with simulated_cuda("eager", n_devices=2):
    ...     import cupy
    ...     array = cupy.empty(3)  # memory of device 0
    ...     with cupy.cuda.Device(1):
    ...         array.fill(1)
    Traceback (most recent call last):
    parllel.testing.simulated_cuda.errors.WrongDeviceError: ...
    """


class OutOfBoundsError(SimulationError):
    """Work touched bytes beside a block of device memory.

    >>> from parllel import cuda
    >>> from parllel.testing.simulated_cuda import simulated_cuda
    >>> with simulated_cuda("eager"):
    ...     block = cuda.allocate_device(16)
    ...     cupy = cuda.library()
    ...     memory = cupy.cuda.UnownedMemory(block.data.ptr, 1024, block)
    ...     cupy.ndarray(1024, "u1", memptr=cupy.cuda.MemoryPointer(memory, 0)).fill(1)
    Traceback (most recent call last):
    parllel.testing.simulated_cuda.errors.OutOfBoundsError: ...
    """


class LeakError(SimulationError):
    """Memory was still allocated, or locked, where none should be.

    >>> from parllel import cuda
    >>> from parllel.testing.simulated_cuda import simulated_cuda
    >>> with simulated_cuda("eager") as simulation:
    ...     kept = cuda.allocate_device(16)
    ...     simulation.assert_no_leaks()
    Traceback (most recent call last):
    parllel.testing.simulated_cuda.errors.LeakError: ...
    """


class NotImitatedError(NotImplementedError):
    """CuPy has it, and the stand-in does not.

    >>> from parllel import cuda
    >>> from parllel.testing.simulated_cuda import simulated_cuda
    >>> with simulated_cuda("eager"):
    ...     cuda.library().cuda.Event(interprocess=True)
    Traceback (most recent call last):
    parllel.testing.simulated_cuda.errors.NotImitatedError: ...
    """
