"""Simulated CUDA: a stand-in for CuPy and its GPU on host memory, with CUDA's rules of order."""

from parllel.testing.simulated_cuda.errors import (
    LeakError,
    NotImitatedError,
    OutOfBoundsError,
    SimulationError,
    UseAfterFreeError,
    WrongDeviceError,
)
from parllel.testing.simulated_cuda.simulation import Simulation, simulated_cuda

__all__ = [
    "LeakError",
    "NotImitatedError",
    "OutOfBoundsError",
    "Simulation",
    "SimulationError",
    "UseAfterFreeError",
    "WrongDeviceError",
    "simulated_cuda",
]
