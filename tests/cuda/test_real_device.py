"""What `make test-gpu` does: it says why there is no GPU, or runs just what a GPU can run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eager_as_real import Operations, Values
from parllel import Array
from parllel.testing.simulated_cuda import simulated_cuda

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
RECIPE = re.compile(r"^test-gpu:.*\n\t\$\(BIN\)/python -m pytest (.*)$", re.MULTILINE)

# The contracts have by far the most tests of a device (tests/storages/test_cuda_memory.py). Here
# they would take long.
OTHERS = [
    path
    for path in TESTS.glob("*/test_*.py")
    if "cuda_device" in path.read_text()
    and path.name not in ("test_cuda_memory.py", Path(__file__).name)
]


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
        r"--cuda=real: (no NVIDIA driver was found|the NVIDIA driver sees no device|CuPy is not)",
        run.stderr,
    )
    assert run.stdout == ""


@pytest.mark.long  # it runs a pytest of a thousand tests
def test_it_runs_what_needs_no_simulation_on_one_device() -> None:
    """The device is an eager simulation here, which lasts for all tests as a GPU does."""
    run = make_test_gpu("-p", "eager_as_real", "-v", *OTHERS, PYTHONPATH=str(TESTS))
    assert run.returncode == 0, run.stdout + run.stderr
    ids = re.findall(r"^tests/(\S+)::(.*) PASSED", run.stdout, re.MULTILINE)
    summary = re.search(r"(\d+) passed, (\d+) deselected in", run.stdout)
    assert summary is not None
    assert len(ids) == int(summary[1])
    assert [name for _, name in ids if "[real" not in name] == []
    files = {str(path.relative_to(TESTS)) for path in OTHERS}
    assert {file for file, _ in ids} == files
    for reason in ("they test the simulation itself", "what a GPU does not tell"):
        assert re.search(rf"left out with --cuda=real: .*{reason}: \d+ tests", run.stdout)


def test_what_a_gpu_would_not_do_is_found() -> None:
    with simulated_cuda("eager"), Operations(), Values():
        tensors = [Array((3,), "f4", storage=kind).to_torch() for kind in ("device", "managed")]
        for tensor in (*tensors, tensors[0].clone(), tensors[0][1:] + 1, torch.cat(tensors)):
            with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
                _ = tensor + torch.ones(len(tensor))
            with pytest.raises(TypeError, match=r"use tensor\.cpu\(\)|can't be converted to numpy"):
                tensor.numpy()
            tensor.copy_(torch.ones(len(tensor)))
            assert (tensor.cpu() + torch.ones(len(tensor))).numpy().tolist() == [2] * len(tensor)
        pinned = Array((3,), "f4", storage="pinned").to_torch()  # the host's
        assert (pinned + torch.ones(3)).numpy().tolist() == [1] * 3
        with pytest.raises(RuntimeError, match="one at a time"), simulated_cuda("lazy"):
            """A test with a simulation of its own."""
