"""What tests of parllel and of packages built on it share: contracts, and what they run on."""

from parllel.testing.simulated_cuda import simulated_cuda

__all__ = ["simulated_cuda"]
