"""Contracts for tests of parllel and of packages built on it, and the toys that they run on."""

from parllel.testing.simulated_cuda import simulated_cuda

__all__ = ["simulated_cuda"]
