"""`python -m parllel`: what it prints, and what it refuses."""

import subprocess
import sys

import pytest

from parllel import cuda
from parllel.__main__ import compile_kernels, main
from parllel.kernels.targets import find_cpu_kernels, find_entries
from parllel.storages import KINDS
from parllel.testing.simulated_cuda.__main__ import loads
from parllel.testing.simulated_cuda.twins import compiled


def test_it_says_versions_devices_and_storages(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith(f"Python {sys.version_info.major}.{sys.version_info.minor}.")
    for name in ("parllel ", "numpy ", "numba ", "torch "):
        assert name in first
    assert cuda.describe().splitlines()[0] in others
    storages = "\n".join(others)
    assert all(kind in storages for kind in KINDS)
    if not cuda.is_available():
        assert f"not available: pinned, managed, device, because {cuda.why_unavailable()}" in others
        assert "storages: local (the default), shared, inherited" in others


@pytest.mark.usefixtures("cuda_device")
def test_where_there_is_a_device_nothing_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["describe"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "storages: local, shared, inherited, pinned, managed, device (the default)"


def test_it_compiles_all_kernels_ahead(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compile"])
    kernels = find_cpu_kernels()
    assert capsys.readouterr().out.startswith(f"{len(kernels)} kernels are ready (")
    assert all("compiled" in vars(kernel) for kernel in kernels)


def test_it_compiles_what_simulated_cuda_runs() -> None:
    n_kernels = len(find_cpu_kernels()) + len(find_entries())
    assert len(loads()) == n_kernels
    told = compile_kernels("parllel.testing.simulated_cuda.__main__")
    assert told.startswith(f"{n_kernels} kernels are ready (")
    assert compiled.cache_info().currsize >= len(find_entries())


def test_another_word_is_refused_by_its_name() -> None:
    command = [sys.executable, "-m", "parllel", "compiel"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 2
    assert "python -m parllel: error" in run.stderr
    assert "'compiel'" in run.stderr
