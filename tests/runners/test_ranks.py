"""Several ranks of a run: one update, whole runs, resumes and ends. Two processes with gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optional import needs
from parllel import ranks
from parllel.cages import spawn_seeds

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *names: str, program: str = "rank_runs") -> dict[str, Any]:
    """Return what the program found out."""
    command = [sys.executable, str(ROOT / "tests" / f"{program}.py"), str(folder), *names]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_two_ranks_make_the_update_of_one_process_on_both_batches(tmp_path: Path) -> None:
    found = run(tmp_path, "update")["update"]
    assert found["is gradient within bound"]  # see `check_update` for the bound
    assert found["is weight within bound"]
    assert found["is half a batch outside"]  # so a rank that learns alone is found
    assert found["are ranks equal"]  # also where they began with other weights
    assert found["are numbers equal"]
    assert found["do draws differ"]
    first, second = found["limited updates"]
    assert first == second  # one limit for both
    assert found["limited updates alone"] != [first, second]


@pytest.mark.long
def test_ranks_with_unlike_numbers_of_valid_rows_make_the_update_of_all_rows(
    tmp_path: Path,
) -> None:
    found = run(tmp_path, "valid", program="rank_faults")["valid"]
    assert found["is gradient within bound"]
    assert found["are numbers of both"]
    assert found["are ranks equal"]


@pytest.mark.long
def test_ranks_are_normalized_as_one_process_with_all_rows(tmp_path: Path) -> None:
    found = run(tmp_path, "normalized", program="rank_faults")["normalized"]
    # Of agents that die on one rank alone: moments of at most 48 numbers below 4, whose roundings
    # are far smaller.
    assert found["largest difference"] < 1e-5
    for name in ("rewards", "observations"):  # see `check_normalized` for the bound
        assert found[name]["share of bound"] <= 1
        assert found[name]["is half outside"]


@pytest.mark.long
def test_ranks_learn_the_same_or_are_told_what_differs(tmp_path: Path) -> None:
    found = run(tmp_path, "beginnings", program="rank_faults")["beginnings"]
    first, second = (each["result"] for each in found["nothing"])
    assert first["alike"] == second["alike"]  # also the buffers that no file has
    assert first["draws"] != second["draws"]  # of agents that an agent is made of
    for each in found["rate"]:
        assert "options of the optimizer: rank 0 has [{'lr': 0.1," in each["error"][1]
    for each in found["no gradient"]:  # torch's own words, and not that a rank has ended
        assert each["error"][0] == "RuntimeError"
        assert each["error"][1].startswith("element 0 of tensors does not require grad")
    for each in found["thawed"] + found["added"]:
        assert "a parameter (2, 2) learns that did not when" in each["error"][1]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ppo", "dqn", "sac"])
def test_a_resumed_run_of_several_ranks_equals_an_uninterrupted_one(
    tmp_path: Path, kind: str
) -> None:
    found = run(tmp_path, kind)[kind]
    assert all(found["are ranks equal"])
    assert found["do samples differ"]
    n_ranks, other = found["n_ranks"]
    assert found["n_steps"] == 6 * n_ranks * 8 * 3  # of all
    assert found["have numbers"] == [True, *[False] * (n_ranks - 1)]
    assert found["did learn"]
    assert found["is resumed as whole"]  # bit for bit
    _, text = found["resumed by one"]
    assert f"got 1 ranks to go on with the run, expected {n_ranks}" in text
    assert len(found["resumed by another number"]) == other
    assert all(f"got {other} ranks" in text for _, text in found["resumed by another number"])


@pytest.mark.long
def test_ranks_that_differ_are_told_apart_at_the_beginning(tmp_path: Path) -> None:
    found = run(tmp_path, "differing")["differing"]
    expected = {
        "model": "model weight: rank 0 has 'torch.float32 (4, 3)', rank 1 has 'torch.float32 (4,",
        "settings": "batch_size: rank 0 has 16, rank 1 has 32",
        "environments": "environments: rank 0 has 3, rank 1 has 4",
        "place": "rank 0 has 'the beginning of the run', rank 1 has 'something else'",
    }
    assert found.keys() == expected.keys()
    for case, text in expected.items():
        for _, message in found[case]:  # of both
            assert text in message


@pytest.mark.long
def test_a_rank_that_does_not_go_on_ends_the_other_within_seconds(tmp_path: Path) -> None:
    found = run(tmp_path, "ends")["ends"]
    for fault, longest_s in {"killed": 3, "raises": 3, "stopped": 3 + 3}.items():
        (kind, text), waited_s, _ = found[fault]
        assert kind == "RankError"
        assert "rank 0 of 2 waited for the others at 'moments of observations'" in text
        assert waited_s < longest_s
    assert found["raises"][2] == ["ValueError", "the environment of rank 1 is broken"]
    for number, ((kind, text), ended_s) in enumerate(found["apart"]):
        assert kind == "RankError"
        assert f"rank {number} of 2 waited for the others at 'the beginning, at 127.0.0.1:" in text
        assert ended_s < 1 + 5  # the time of the user, and that of a fork of torch


@pytest.mark.long
def test_one_rank_ends_the_run_of_all(tmp_path: Path) -> None:
    assert run(tmp_path, "stop")["stop"]["n_batches"] == [3, 3]


SHORT_GAMES = """
from functools import partial

import atari_ppo
import tyro

atari_ppo.AtariVectorEnv = partial(atari_ppo.AtariVectorEnv, max_num_frames_per_episode=40)
atari_ppo.N_EVAL_ENVS = atari_ppo.N_EPISODES = atari_ppo.N_LAST_EPISODES = 2
atari_ppo.main(tyro.cli(atari_ppo.Config))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        pytest.param("pixels_ppo", 2 * 16 * 64 * 2, marks=needs("minigrid")),
        pytest.param("atari_ppo", 2 * 8 * 128, marks=needs("ale_py")),
    ],
)
def test_an_example_runs_under_torchrun_as_it_is(tmp_path: Path, name: str, steps: int) -> None:
    program, out = ROOT / "examples" / f"{name}.py", tmp_path / "run"
    if name == "atari_ppo":  # but for 100 games at its end
        program = tmp_path / "short.py"
        program.write_text(SHORT_GAMES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(program), "--steps", str(steps), "--out", str(out)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "examples")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("score") == 1  # of rank 0
    own, other = out, out / "rank-1"
    assert (own / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert (own / "metrics.csv").exists()
    assert not (other / "metrics.csv").exists()
    assert json.loads((own / "config.json").read_text())["n_ranks"] == 2


# One process that plays a rank: what the environment says is read, and nothing is waited for.


def set_rank(monkeypatch: pytest.MonkeyPatch, number: int, n_ranks: int) -> None:
    given = {"RANK": number, "WORLD_SIZE": n_ranks, "LOCAL_RANK": number, "MASTER_PORT": 1}
    for name, each in given.items():
        monkeypatch.setenv(name, str(each))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def test_each_rank_has_the_seeds_of_its_part_of_one_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def words(n_envs: int) -> list[int]:
        return [int(seed.generate_state(1)[0]) for seed in spawn_seeds(7, n_envs)]

    whole, found = words(6), []
    for number in range(2):
        set_rank(monkeypatch, number, 2)
        found += words(3)
        assert spawn_seeds([np.random.SeedSequence(1)], 1)[0].entropy == 1  # one's own are kept
    assert found == whole


def test_a_size_without_an_address_is_no_run_of_several_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # as clusters set it for jobs of other kinds
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert (ranks.rank(), ranks.n_ranks()) == (0, 1)


def test_a_time_to_wait_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    set_rank(monkeypatch, 0, 2)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected seconds above 0"):
            ranks.join(timeout_s=wrong)
    monkeypatch.setenv("PARLLEL_RANKS_TIMEOUT_S", "soon")
    with pytest.raises(ValueError, match="PARLLEL_RANKS_TIMEOUT_S: got 'soon'"):
        ranks.gather("something", 0)


def test_one_process_imports_nothing_for_ranks() -> None:
    code = "import sys, parllel.ranks as r; r.gather('x', 1); r.check_same('x', {}); r.join();"
    code += "assert not [m for m in sys.modules if m.partition('.')[0] == 'torch']"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    set_rank(monkeypatch, 3, 4)
    assert ranks.device_of_rank(4) == 3
    assert ranks.device_of_rank(1) == 0  # each sees another one
    with pytest.raises(ranks.RankError, match="number 3 of its machine, and sees 2 GPUs"):
        ranks.device_of_rank(2)
    monkeypatch.delenv("LOCAL_RANK")  # as of another launcher: all would take the first one
    assert ranks.device_of_rank(1) == 0
    with pytest.raises(ranks.RankError, match="rank 3 of 4 sees 4 GPUs, and LOCAL_RANK is not"):
        ranks.device_of_rank(4)
