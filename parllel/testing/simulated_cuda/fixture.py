"""A pytest fixture that runs a test under every schedule. Needs pytest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from parllel.testing.simulated_cuda.simulation import Simulation, simulated_cuda

SCHEDULES = (("eager", 0), ("lazy", 0), ("random", 0), ("random", 1), ("random", 2))


@pytest.fixture(params=SCHEDULES, ids=lambda param: f"{param[0]}-{param[1]}")
def cuda_simulation(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    """A simulated device, eager, lazy, and in three random orders.

    Import it in a test module or a conftest.py.
    """
    schedule, seed = request.param
    with simulated_cuda(schedule, seed) as simulation:
        yield simulation
