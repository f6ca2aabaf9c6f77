"""What all tests share: the CUDA device, which is simulated unless `--cuda=real` asks for a GPU."""

import os
import zlib
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from parllel import cuda
from parllel.testing.simulated_cuda import simulated_cuda

SCHEDULES = ("eager", "lazy", "random")
DESELECTED = pytest.StashKey[Counter[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda",
        choices=["simulated", "real"],
        default="simulated",
        help="what tests of CUDA memory run on: a simulation under each schedule, or this"
        " machine's GPU; tests of the simulation itself are left out then",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "cuda: uses the fixture cuda_device (set by itself): what `make test-gpu` runs",
        "simulation(reason): needs simulated CUDA; left out with --cuda=real",
    ):
        config.addinivalue_line("markers", marker)
    if config.getoption("cuda") == "simulated":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # so that a GPU changes nothing here
    else:
        reason = why_no_gpu()
        if reason is not None:
            raise pytest.UsageError(f"--cuda=real: {reason}")


def why_no_gpu() -> str | None:
    """Say why the tests can't run on a GPU; None where they can."""
    reason = cuda.why_unavailable()
    if reason is None and not torch.cuda.is_available():
        reason = "torch sees no CUDA device (its build may be for CPUs); make -B venv gets another"
    return reason


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cuda_device" in metafunc.fixturenames:
        is_real = metafunc.config.getoption("cuda") == "real"
        metafunc.parametrize("cuda_device", ["real"] if is_real else SCHEDULES, indirect=True)


@pytest.fixture
def cuda_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A CUDA device for the time of a test: simulated, under each schedule in turn, or real.

    It is torch's name of it: its tensors are torch's for the CPU in a simulation. No more than
    that is given, so that a test can't ask the simulation what a GPU does not tell.
    """
    if request.param == "real":
        yield device_of_torch()
        cuda.synchronize()  # an error of the device belongs to the test that caused it
    else:
        seed = zlib.crc32(request.node.nodeid.encode())  # another random order for each test
        with simulated_cuda(request.param, seed):
            yield device_of_torch()


def device_of_torch() -> torch.device:
    return cuda.tensor_over(cuda.allocate_device(1)).device


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Mark what uses the device, before `-m` asks; leave out what needs the simulation."""
    kept, left_out = [], []
    reasons: Counter[str] = Counter()
    for item in items:
        reason = why_simulated(item)
        if "cuda_device" in item.fixturenames:
            item.add_marker("cuda")
        if reason is not None and config.getoption("cuda") == "real":
            left_out.append(item)
            reasons[reason] += 1
        else:
            kept.append(item)
    config.stash[DESELECTED] = reasons
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def why_simulated(item: pytest.Function) -> str | None:
    """Say why a test needs the simulation; None where it does not.

    A test that takes `cuda_device` does not, whatever the module that it stands in says.
    """
    if "cuda_device" in item.fixturenames:
        return None
    marker = item.get_closest_marker("simulation")
    if marker is not None:
        return str(marker.args[0])
    if "cuda_simulation" in item.fixturenames:
        return "they ask the simulation what a GPU does not tell"
    if hasattr(item.module, "simulated_cuda"):
        return "they stand in modules that use simulated CUDA"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason, n_tests in terminalreporter.config.stash.get(DESELECTED, Counter()).items():
        terminalreporter.line(f"left out with --cuda=real: {n_tests} tests: {reason}")
