"""The faults of the zoo are found, and the programs without them pass in any order."""

import pytest
from zoo_of_faults import ALWAYS_WRONG, FAULTS, KERNELS, Fault

from parllel.testing.simulated_cuda import SimulationError, simulated_cuda

pytestmark = pytest.mark.simulation("they test the simulation itself")
each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)

ORDERS = [("eager", 0), ("lazy", 0), *(("random", seed) for seed in range(20))]


def is_found(fault: Fault, schedule: str, seed: int = 0) -> bool:
    try:
        with simulated_cuda(schedule, seed, kernels=KERNELS):
            fault(False)
    except (AssertionError, SimulationError):
        return True
    return False


@each_fault
def test_a_lazy_device_finds_the_fault(fault: Fault) -> None:
    assert is_found(fault, "lazy")


@each_fault
def test_a_random_order_finds_the_fault(fault: Fault) -> None:
    assert any(is_found(fault, "random", seed) for seed in range(20))


@each_fault
def test_an_idle_device_hides_what_is_a_matter_of_order(fault: Fault) -> None:
    assert is_found(fault, "eager") == (fault in ALWAYS_WRONG)


@each_fault
def test_the_right_program_raises_no_alarm(fault: Fault) -> None:
    for schedule, seed in ORDERS:
        with simulated_cuda(schedule, seed, kernels=KERNELS) as simulation:
            fault(True)
            simulation.assert_no_leaks()
