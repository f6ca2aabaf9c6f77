"""A plugin of pytest: tests of programs on a GPU run on simulated CUDA, on any machine.

    pytest -p parllel.testing.pytest_plugin --simulated-cuda=lazy --simulated-cuda=random:0

Each test runs once under each schedule that is given, on a device of its own; a fault that the
device finds fails the test. Modules may import CuPy at their top: they get the stand-in, which
finds the device of the test that runs. A fixture of a wider scope than a function has no device.

Without the option nothing changes. A test with the marker `no_simulated_cuda` has no such device;
the fixture `simulation` gives the others the counters of theirs (`Simulation`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from parllel.testing.simulated_cuda.library import install, make_library, restore
from parllel.testing.simulated_cuda.simulation import Simulation, simulated_cuda

MARKER = "no_simulated_cuda"


class GivenSchedule(NamedTuple):
    """A schedule, as the option names it.

    Args:
        name: "eager", "lazy" or "random".
        seed: of the random order.
    """

    name: str
    seed: int

    @classmethod
    def of(cls, text: str) -> GivenSchedule:
        """Read "eager", "lazy" or "random:SEED".

        Raises:
            pytest.UsageError: it is none of them.
        """
        name, colon, seed = text.partition(":")
        is_random = name == "random" and seed.isdecimal()
        if not is_random and (colon or name not in ("eager", "lazy")):
            raise pytest.UsageError(
                f"--simulated-cuda: got {text!r}, expected eager, lazy or random:SEED, where SEED"
                " is a number"
            )
        return cls(name, int(seed or 0))

    def __str__(self) -> str:
        return f"random:{self.seed}" if self.name == "random" else self.name


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("parllel").addoption(
        "--simulated-cuda",
        action="append",
        default=[],
        metavar="SCHEDULE",
        help="run tests on a simulated CUDA device. eager: work runs at once; lazy: as late as"
        " CUDA allows, so that a missing wait shows; random:SEED: in any legal order. Given"
        " several times, each test runs under each",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Put the stand-in into CuPy's place before tests are imported, where the option is given."""
    config.addinivalue_line("markers", f"{MARKER}: --simulated-cuda gives this test no device")
    schedules = [GivenSchedule.of(text) for text in config.getoption("simulated_cuda")]
    if schedules:
        former = install(make_library())
        config.add_cleanup(lambda: restore(former))
        config.pluginmanager.register(SimulatedTests(schedules), "parllel_simulated_tests")


class SimulatedTests:
    """Gives each test a simulated device.

    Args:
        schedules: those under which each test runs.
    """

    def __init__(self, schedules: list[GivenSchedule]) -> None:
        self._schedules = schedules

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Have a test run under each schedule."""
        if "simulation" in metafunc.fixturenames and not _has_marker(metafunc):
            metafunc.parametrize("simulation", self._schedules, indirect=True, ids=str)

    @pytest.fixture(autouse=True)
    def simulation(self, request: pytest.FixtureRequest) -> Iterator[Simulation | None]:
        """The simulated device of this test; None where it has none."""
        if request.node.get_closest_marker(MARKER):
            yield None
            return
        schedule = getattr(request, "param", self._schedules[0])  # unittest's have no parameters
        with simulated_cuda(schedule.name, schedule.seed) as simulation:
            yield simulation


def _has_marker(metafunc: pytest.Metafunc) -> bool:
    return metafunc.definition.get_closest_marker(MARKER) is not None
