"""What all tests share: the CUDA device, and the choice between the short and the long run.

The device is simulated unless `--cuda=real` asks for a GPU. `make test` is the short run; tests
with the marker `long` are for `make test-long`.

torch and Hypothesis are imported where they are needed: the process that hands out tests does
without them, and the others start only after its own start.
"""

from __future__ import annotations

import gc
import logging
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from long_run import is_of_share, share_of
from parllel import cuda
from schedules import find_repetitions, marks_of

if TYPE_CHECKING:
    import torch

LEFT_OUT = pytest.StashKey[Counter[str]]()
# multiprocessing puts sockets below it, whose paths have at most 103 bytes on macOS, 107 on Linux:
# with a longer one Python starts no fork server.
LONGEST_TMPDIR = 103 - len("/pymp-12345678/listener-12345678")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda",
        choices=["simulated", "real"],
        default="simulated",
        help="what tests of CUDA memory run on: a simulation, or this machine's GPU; tests of the"
        " simulation itself are left out then",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="run the tests that are marked long, too: all schedules of simulated CUDA, benches,"
        " examples as whole programs; and try three times as many examples",
    )
    parser.addoption(
        "--every-schedule",
        action="store_true",
        help="with --long: try each case of each test under all schedules, not only each claim",
    )
    parser.addoption(
        "--share",
        default="0/1",
        type=share_of,
        metavar="K/N",
        help="with --rest: run one of N shares of these tests, that with the number K, 0 to N - 1",
    )
    parser.addoption(
        "--rest",
        action="store_true",
        help="with --long: leave out the tests that the short run has run in the same way",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "cuda: uses the fixture cuda_device (set by itself): what `make test-gpu` runs",
        "long: left out unless --long is given, or each argument names a test (file.py::test)",
        "rules: left out of the short run, and with --rest: `make check` names their file",
        "simulation(reason): needs simulated CUDA; left out with --cuda=real",
    ):
        config.addinivalue_line("markers", marker)
    if config.getoption("cuda") == "simulated":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # so that a GPU changes nothing here
        if "CUPY_CACHE_DIR" not in os.environ:  # CuPy makes a folder when it is imported
            folder = tempfile.TemporaryDirectory(prefix="parllel-cupy-")
            config.add_cleanup(folder.cleanup)
            os.environ["CUPY_CACHE_DIR"] = folder.name
    else:
        reason = why_no_gpu()
        if reason is not None:
            raise pytest.UsageError(f"--cuda=real: {reason}")
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR:
        os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"
    if not hands_out_tests(config):
        prepare_libraries(config)


def hands_out_tests(config: pytest.Config) -> bool:
    """Tell whether this process runs no test: `-n` starts others for that."""
    return bool(getattr(config.option, "numprocesses", 0)) and not hasattr(config, "workerinput")


def prepare_libraries(config: pytest.Config) -> None:
    import torch

    import profiles

    torch.set_num_threads(1)  # several would wait for each other where tests run beside tests
    # pytest attaches its handlers, six times a test, to each logger that does not propagate.
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.name.partition(".")[0] == "torch":
            logger.propagate = True
    if not config.getoption("--hypothesis-profile"):
        profiles.load("long" if config.getoption("long") else "short")


def why_no_gpu() -> str | None:
    """Say why the tests can't run on a GPU; None where they can."""
    reason = cuda.why_unavailable()
    if reason is not None:
        return reason
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA device (its build may be for CPUs); make -B venv gets another"
    return None


def pytest_report_header(config: pytest.Config) -> str | None:
    is_short = not config.getoption("long")
    return "the short run: --long adds the tests that are marked long" if is_short else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cuda_device" in metafunc.fixturenames:
        is_real = metafunc.config.getoption("cuda") == "real"
        names = ("lazy", "eager", "random")
        simulated = [pytest.param(name, marks=marks_of(name)) for name in names]
        metafunc.parametrize("cuda_device", ["real"] if is_real else simulated, indirect=True)


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
        from parllel.testing.simulated_cuda import simulated_cuda

        seed = zlib.crc32(request.node.nodeid.encode())  # another random order for each test
        with simulated_cuda(request.param, seed):
            yield device_of_torch()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A Ray cluster of this machine; its value is the address."""
    from ray_cluster import small_cluster

    with small_cluster() as address:
        yield address


@pytest.fixture
def recycled_actors(ray_cluster: str) -> Iterator[None]:
    """Have the cages of this test take the actors of those that are closed."""
    import ray_cluster as actors

    with actors.recycled_actors():
        yield


def device_of_torch() -> torch.device:
    return cuda.tensor_over(cuda.allocate_device(1)).device


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Mark what uses the device, before `-m` asks; leave out what this run is not for."""
    for item in items:
        if "cuda_device" in item.fixturenames:
            item.add_marker("cuda")
        if "cuda_simulation" in item.fixturenames:
            for marker in marks_of(item.callspec.params["cuda_simulation"][0]):
                item.add_marker(marker)
    is_whole = config.getoption("every_schedule") or names_tests(config)
    repetitions = set() if is_whole else find_repetitions(items)
    kept, left_out = [], []
    reasons: Counter[str] = Counter()
    for item in items:
        reason = why_left_out(item, config)
        if reason is None and item in repetitions:
            reason = "without --every-schedule: another case of their claim runs under theirs"
        if reason is None:
            kept.append(item)
        else:
            left_out.append(item)
            reasons[reason] += 1
    config.stash[LEFT_OUT] = reasons
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_collection_finish() -> None:
    leave_alone_what_exists()


@pytest.fixture(scope="module")
def quick_collections() -> None:
    """For modules that call `gc.collect()` often: what was there before them is left alone."""
    leave_alone_what_exists()


def leave_alone_what_exists() -> None:
    """Spare `gc.collect()` modules, items and Numba's types, a third of a second."""
    gc.collect()
    gc.freeze()


def why_left_out(item: pytest.Function, config: pytest.Config) -> str | None:
    """Say why a test is not for this run; None where it is."""
    if config.getoption("cuda") == "real":
        reason = why_simulated(item)
        if reason is not None:
            return f"with --cuda=real: {reason}"
    is_named = names_tests(config)
    if item.get_closest_marker("long") and not config.getoption("long") and not is_named:
        return "without --long: they are marked long"
    is_all = config.getoption("long") and not config.getoption("rest")
    if item.get_closest_marker("rules") and not is_all and runs_all_folders(config):
        return "of the repository's rules: `make check` runs them"
    if config.getoption("rest") and not (
        item.get_closest_marker("long") or getattr(item.function, "is_hypothesis_test", False)
    ):
        return "with --rest: the short run has run them"
    if config.getoption("rest") and not is_of_share(item.nodeid, config.getoption("share")):
        return "with --share: they are of another share"
    return None


def names_tests(config: pytest.Config) -> bool:
    """Tell whether each argument names a test, as file.py::test."""
    return all("::" in argument for argument in config.args)


def runs_all_folders(config: pytest.Config) -> bool:
    """Tell whether no argument names a folder of tests, or a file."""
    tests = Path(__file__).parent
    named = {Path(config.invocation_params.dir, each.partition("::")[0]) for each in config.args}
    return bool({tests, tests.parent} & {path.resolve() for path in named})


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
    for reason, n_tests in terminalreporter.config.stash.get(LEFT_OUT, Counter()).items():
        terminalreporter.line(f"left out {reason}: {n_tests} tests")
