"""Each example: the same numbers in each memory, resumed bit for bit, and run as a program."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from example_runs import EXAMPLES, changed, load, train
from safetensors.torch import load_file

from optional import needs
from parllel.testing.simulated_cuda import simulated_cuda
from schedules import each_schedule


class Small(NamedTuple):
    """An example with small numbers.

    Args:
        name: its file.
        constants: those of its module that are changed.
        steps: environment steps of a run of three batches or more.
        packages: those that it needs beside parllel.
    """

    name: str
    constants: dict[str, Any]
    steps: int
    packages: tuple[str, ...] = ()


CASES = [
    Small("cartpole_ppo", {"T": 16, "N_ENVS": 4, "CHECKPOINT_EVERY": 64}, 4 * 64),
    Small("pixels_ppo", {"T": 16, "N_ENVS": 4, "CHECKPOINT_EVERY": 64}, 4 * 64, ("minigrid",)),
]
each_example = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=needs("tyro", *case.packages), id=case.name) for case in CASES],
)


@each_example
@each_schedule
def test_an_example_gives_the_same_numbers_in_each_memory(
    case: Small, schedule: str, seed: int, tmp_path: Path
) -> None:
    example = load(case.name)
    with changed(example, case.constants):
        expected, _ = train(example, tmp_path / "local", steps=case.steps, storage="local")
        with simulated_cuda(schedule, seed):
            logs, _ = train(example, tmp_path / "device", steps=case.steps)
    assert logs == expected
    assert len(logs) >= 3


@each_example
def test_an_example_goes_on_where_it_was_cut_off(case: Small, tmp_path: Path) -> None:
    example = load(case.name)
    with changed(example, case.constants):
        n_steps, half = case.steps, case.steps // 2
        expected, _ = train(example, tmp_path / "alone", steps=n_steps, seed=3)

        class CutOffError(Exception):
            """The end of the first run."""

        def cut_off(run: Any) -> None:
            if run.n_steps >= half + 1:
                raise CutOffError

        class Cut(example.RLRunner):  # type: ignore[name-defined, misc]
            def __init__(self, *args: Any, after_batch: Any = (), **kwargs: Any) -> None:
                super().__init__(*args, after_batch=[*after_batch, cut_off], **kwargs)

        with changed(example, {"RLRunner": Cut}), pytest.raises(CutOffError):
            train(example, tmp_path / "cut", steps=n_steps, seed=3)
        logs, _ = train(example, tmp_path / "cut", steps=n_steps, seed=3, resume=True)
    assert 0 < len(logs) < len(expected)
    assert logs == expected[-len(logs) :]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("alone", "cut")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@each_example
def test_an_example_depends_on_its_seed(case: Small, tmp_path: Path) -> None:
    example = load(case.name)
    with changed(example, case.constants):
        runs = [
            train(example, tmp_path / str(number), steps=case.steps, seed=seed)[0]
            for number, seed in enumerate((3, 3, 4))
        ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_an_example_reads_from_top_to_bottom_in_150_lines() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert {name: length for name, length in lengths.items() if length >= 150} == {}
    assert {f"{case.name}.py" for case in CASES} <= lengths.keys()


@needs("matplotlib", "tensorboard", "tqdm", "tyro")
@pytest.mark.long
def test_an_example_is_a_program(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "cartpole_ppo.py"), "--steps", "2500"]
    command += ["--seed", "1", "--storage", "local", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    name, score = result.stdout.splitlines()[-1].split()
    assert name == "score"
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1024, 2048, 3072]
    assert all(float(row["train/episode_return"]) > 5 for row in rows)
    assert float(score) == pytest.approx(float(rows[-1]["train/episode_return"]), abs=0.1)
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.long
@needs("tyro")
def test_cartpole_is_learned(tmp_path: Path) -> None:
    logs, summary = train(load("cartpole_ppo"), tmp_path, steps=20_480)
    returns = [values["train/episode_return"] for _, values in logs]
    assert logs[0][1]["train/n_episodes"] >= 20
    assert returns[0] < 40  # of the first 1,024 steps: the policy is random
    assert summary.n_steps == 20_480
    assert summary.mean_return == returns[-1]
    assert summary.mean_return > 2 * returns[0]
