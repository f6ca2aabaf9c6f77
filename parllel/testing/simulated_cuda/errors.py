"""Errors of a simulation, for programs that a GPU would punish, or whose faults it would hide."""


class SimulationError(RuntimeError):
    """The program is wrong, though a GPU might not show it; the notes say where work was queued."""


class UseAfterFreeError(SimulationError):
    """Work touches device memory that was freed, or host memory that was unlocked."""


class OutOfBoundsError(SimulationError):
    """Work touched bytes beside a block of device memory."""


class LeakError(SimulationError):
    """Memory was still allocated, or locked, where none should be."""


class NotImitatedError(NotImplementedError):
    """CuPy has it, and the stand-in does not."""
