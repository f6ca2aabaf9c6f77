"""`make gpu-day` is rehearsed without a GPU: its stages, what it tells of a failure, its budget."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # programs that run for seconds

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "bench" / "gpu_day"
# Of some for a device, and none.
TESTS = "tests/ops/test_copy_grid.py tests/test_schedules.py"
OK = re.compile(r"^\[ *\d+ s\] ok: (\w+), \d+ of \d+ s$", re.MULTILINE)


def run_day(*stages: str, out: Path, **environment: object) -> subprocess.CompletedProcess[str]:
    settings = {"SIMULATED": 1, "PYTHON": sys.executable, "OUT": out, **environment}
    return subprocess.run(
        [FOLDER / "run.sh", *stages],
        env=os.environ | {name: str(value) for name, value in settings.items()},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def smoke(*options: str, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    """Run the checks in a process of their own, with other lines before and after."""
    path = FOLDER / "smoke.py"
    program = "\n".join(
        (
            before,
            "import runpy, sys",
            f"sys.argv = {[path.name, '--simulated', *options]!r}",
            "try:",
            f"    runpy.run_path({str(path)!r}, run_name='__main__')",
            "finally:",
            f"    {after or 'pass'}",
        )
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_all_that_measures_nothing_is_rehearsed(tmp_path: Path) -> None:
    day = run_day(out=tmp_path / "new", TESTS=TESTS, BUDGET=380)
    assert day.returncode == 0, day.stdout + day.stderr
    assert OK.findall(day.stdout) == ["env", "smoke", "tests", "train"]
    assert (tmp_path / "new" / "summary.txt").read_text() in day.stdout
    assert re.search(r"^\d+ passed", day.stdout, re.MULTILINE)
    facts = json.loads((tmp_path / "new" / "train.json").read_text())
    assert facts["is_simulated"]
    assert facts["CartPole, samples on the device"]["mean_return"] > 0
    work = facts["pixels, 2 x 28,224 B"]["parllel's work a time step"]
    assert work["event_synchronizations"] == 1
    assert "aten::conv2d" in (tmp_path / "new" / "profile.txt").read_text()
    with tarfile.open(tmp_path / "new" / "logs.tar.gz") as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"smoke.log", "tests.log", "tests_1.xml", "tests_2.log", "train.log"} <= names


def test_a_stage_that_fails_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    day = run_day("tests", "env", out=tmp_path, TESTS="tests/ops/none tests/test_schedules.py")
    assert day.returncode == 1
    assert OK.findall(day.stdout) == ["env"]
    summary = (tmp_path / "summary.txt").read_text()
    assert re.search(r"FAILED with 1: tests, .*not found: .*tests/ops/none", summary, re.DOTALL)
    assert "stages that failed: 1" in summary


def test_what_the_budget_does_not_hold_is_left_out(tmp_path: Path) -> None:
    day = run_day("env", "smoke", out=tmp_path, BUDGET=14)
    assert day.returncode == 0
    assert re.findall(r"left out: (\w+); \d+ s of", day.stdout) == ["env", "smoke"]


def test_a_stage_that_lasts_too_long_is_ended(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 300\n")
    slow.chmod(0o755)
    day = run_day("smoke", out=tmp_path, PYTHON=slow, BUDGET=5, LEAST_S=1)
    assert day.returncode == 1
    assert "FAILED with 124: smoke, " in day.stdout


def test_checks_of_kernels_do_without_torch() -> None:
    run = smoke("--kernels-only", after="print('torch' in sys.modules)")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "6 of 6 checks passed" in run.stdout
    assert run.stdout.endswith("False\n")


def test_a_check_that_fails_ends_none_of_the_others() -> None:
    broken = "from parllel.ops import advantage; advantage.estimate_advantage = lambda *a, **k: 0"
    run = smoke("--kernels-only", before=broken)
    assert run.returncode == 1
    assert re.findall(r"^FAILED (\w+)", run.stdout, re.MULTILINE) == [
        "advantages_are_those_of_the_host"
    ]
    assert "5 of 6 checks passed" in run.stdout


def test_on_a_machine_without_gpu_one_line_says_so(tmp_path: Path) -> None:
    """conftest.py has hidden any device."""
    day = run_day("smoke", out=tmp_path, SIMULATED="", BUDGET=100)
    assert day.returncode == 1
    assert re.findall(r"^(?:ok|FAILED) (\w+) [\d.]+ ms", day.stdout, re.MULTILINE) == [
        "the_device_is_usable"
    ]
    assert re.search(r"AssertionError: (no NVIDIA driver|the NVIDIA driver)", day.stdout)
    assert "sanitize" not in day.stdout
