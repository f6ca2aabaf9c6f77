"""What `make test-gpu` does: it says why there is no GPU, or runs just what a GPU can run."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = re.compile(r"^test-gpu:.*\n\t\$\(BIN\)/python -m pytest (.*)$", re.MULTILINE)
FILES = ("test_device_arrays.py", "test_cuda.py", "test_simulated_cuda.py")
SUMMARY = re.compile(r"(\d+) passed, (\d+) deselected in")


def make_test_gpu(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests as the Makefile does, with further options."""
    found = RECIPE.search((ROOT / "Makefile").read_text())
    assert found is not None
    command = [sys.executable, "-m", "pytest", *found[1].split(), *options]
    return subprocess.run(
        command,
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


def test_it_runs_what_needs_no_simulation_once_and_on_one_device() -> None:
    """The device is an eager simulation here, which lasts for all tests as a GPU does.

    A test that starts a simulation of its own would fail beside it.
    """
    files = [f"tests/{name}" for name in FILES]
    run = make_test_gpu("-p", "eager_as_real", "-v", *files, PYTHONPATH=str(ROOT / "tests"))
    assert run.returncode == 0, run.stdout + run.stderr
    ids = re.findall(r"^(tests/\S+::.*) PASSED", run.stdout, re.MULTILINE)
    summary = SUMMARY.search(run.stdout)
    assert summary is not None
    assert len(ids) == int(summary[1]) > 40
    assert [name for name in ids if "[real" not in name] == []
    assert {name.partition("::")[0] for name in ids} == set(files)
    for reason in ("they test the simulation itself", "what a GPU does not tell"):
        assert re.search(rf"left out with --cuda=real: \d+ tests: .*{reason}", run.stdout)
