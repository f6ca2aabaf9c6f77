"""The plugin of pytest, in programs of its own: devices for tests, schedules, what it leaves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.simulation("they test the simulation itself")

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import sys
import unittest

import cupy
import numpy as np
import pytest

from parllel import Array, cuda


def read_early():
    host = np.zeros(4, np.int64)
    lock = cuda.PageLock(host.view(np.uint8))
    cuda.copy_to_host(cuda.to_device(np.arange(4)), out_host=host)
    seen = host.tolist()
    cuda.synchronize()
    lock.release()
    return seen


def test_early():
    assert read_early() == [0, 1, 2, 3]


def test_array(simulation):
    array = Array((2, 3), "f4", storage="device")
    array[...] = 1
    assert array.to_ndarray().tolist() == [[1] * 3] * 2
    assert simulation.n_operations > 0


def test_cupy_of_the_module():
    array = cupy.empty(3, np.float32)
    array.fill(2)
    assert isinstance(cuda.to_device(np.zeros(2)), cupy.ndarray)
    assert array.get().tolist() == [2, 2, 2]


class TestOfUnittest(unittest.TestCase):
    def test_array(self):
        assert cuda.is_available()


@pytest.mark.no_simulated_cuda
def test_without():
    with pytest.raises(RuntimeError, match="the simulation has ended"):
        cupy.empty(3, np.float32)
"""


def run(folder: Path, *options: str, tests: str = TESTS) -> tuple[int, str]:
    (folder / "test_program.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "parllel.testing.pytest_plugin", "-v"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--strict-markers", *options, "test_program.py"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return result.returncode, result.stdout + result.stderr


def outcomes(printed: str) -> dict[str, str]:
    return dict(re.findall(r"^test_program\.py::(\S+) ([A-Z]+)", printed, re.MULTILINE))


def test_each_test_has_a_device_under_each_schedule(tmp_path: Path) -> None:
    code, printed = run(tmp_path, "--simulated-cuda=lazy", "--simulated-cuda=eager")
    assert outcomes(printed) == {
        "test_early[lazy]": "FAILED",
        "test_early[eager]": "PASSED",
        "test_array[lazy]": "PASSED",
        "test_array[eager]": "PASSED",
        "test_cupy_of_the_module[lazy]": "PASSED",
        "test_cupy_of_the_module[eager]": "PASSED",
        "TestOfUnittest::test_array": "PASSED",
        "test_without": "PASSED",
    }
    assert code == 1


@pytest.mark.long
def test_random_orders_have_seeds(tmp_path: Path) -> None:
    options = [f"--simulated-cuda=random:{seed}" for seed in range(8)]
    found = outcomes(run(tmp_path, *options, "-k", "test_early")[1])
    assert list(found) == [f"test_early[random:{seed}]" for seed in range(8)]
    assert set(found.values()) == {"PASSED", "FAILED"}


@pytest.mark.parametrize("text", ["slow", "lazy:1", "random", "random:x", "random:-1", ""])
def test_other_schedules_are_refused(text: str) -> None:
    from parllel.testing.pytest_plugin import GivenSchedule

    with pytest.raises(pytest.UsageError, match=r"expected eager, lazy or random:SEED"):
        GivenSchedule.of(text)


def test_without_the_option_nothing_changes(tmp_path: Path) -> None:
    tests = """
import sys
def test_nothing(request):
    assert "simulation" not in request.fixturenames
    assert getattr(sys.modules.get("cupy"), "__file__", "real") is not None
"""
    code, printed = run(tmp_path, tests=tests)
    assert outcomes(printed) == {"test_nothing": "PASSED"}
    assert code == 0
