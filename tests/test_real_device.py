"""What `make test-gpu` does: it says why there is no GPU, or runs just what a GPU can run."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
RECIPE = re.compile(r"^test-gpu:.*\n\t\$\(BIN\)/python -m pytest (.*)$", re.MULTILINE)

# The contracts have by far the most tests of a device: tests/test_cuda_memory.py. Here they would
# take long.
OTHERS = [
    path
    for path in TESTS.glob("test_*.py")
    if "cuda_device" in path.read_text()
    and path.name not in ("test_cuda_memory.py", Path(__file__).name)
]
PLANTED = """
import torch
from parllel import Array
from parllel.testing import simulated_cuda

def test_of_both_sides(cuda_device):
    Array((3,), "f4", storage="device").to_torch() + torch.ones(3)

def test_of_both_sides_later(cuda_device):
    Array((3,), "f4", storage="managed").to_torch().clone() + torch.ones(3)

def test_read_by_numpy(cuda_device):
    Array((3,), "f4", storage="device").to_torch().clone().numpy()

def test_with_a_simulation_of_its_own(cuda_device):
    with simulated_cuda("lazy"):
        pass

def test_right(cuda_device):
    tensor = Array((3,), "f4", storage="device").to_torch().clone()
    tensor.copy_(torch.ones(3))
    assert (tensor.cpu() + torch.ones(3)).numpy().tolist() == [2] * 3
"""


def make_test_gpu(*options: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests as the Makefile does, with further options."""
    found = RECIPE.search((ROOT / "Makefile").read_text())
    assert found is not None
    return subprocess.run(
        [sys.executable, "-m", "pytest", *found[1].split(), *map(str, options)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_without_a_gpu_it_fails_at_once_with_the_reason() -> None:
    run = make_test_gpu(CUDA_VISIBLE_DEVICES="-1")
    assert run.returncode == 4  # a wrong use of pytest: no test ran
    assert re.search(
        r"--cuda=real: (no NVIDIA driver was found|the NVIDIA driver sees no device)", run.stderr
    )
    assert run.stdout == ""


def test_it_runs_what_needs_no_simulation_on_one_device() -> None:
    """The device is an eager simulation here, which lasts for all tests as a GPU does."""
    run = make_test_gpu("-p", "eager_as_real", "-v", *OTHERS, PYTHONPATH=str(TESTS))
    assert run.returncode == 0, run.stdout + run.stderr
    ids = re.findall(r"^tests/(\S+)::(.*) PASSED", run.stdout, re.MULTILINE)
    summary = re.search(r"(\d+) passed, (\d+) deselected in", run.stdout)
    assert summary is not None
    assert len(ids) == int(summary[1])
    assert [name for _, name in ids if "[real" not in name] == []
    assert {file for file, _ in ids} == {path.name for path in OTHERS}
    for reason in ("they test the simulation itself", "what a GPU does not tell"):
        assert re.search(rf"left out with --cuda=real: \d+ tests: .*{reason}", run.stdout)


def test_a_test_that_a_gpu_could_not_run_is_found(tmp_path: Path) -> None:
    planted = tmp_path / "test_planted.py"
    planted.write_text(PLANTED)
    options = ("-p", "eager_as_real", "-p", "conftest", "-c", ROOT / "pyproject.toml")
    run = make_test_gpu(*options, planted, PYTHONPATH=str(TESTS))
    assert "4 failed, 1 passed" in run.stdout
    for words in ("same device", "use tensor.cpu()", "one at a time"):
        assert words in run.stdout
