"""The benches run, compare equals and write what they say; no time is asserted.

What needs a GPU runs on simulated CUDA: all of it but the clock, which is one line.
"""

import copy
import functools
import importlib.util
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

from parllel import cuda
from parllel.cuda import Counters
from parllel.ops import launching
from parllel.ops.row_copy import RowCopy
from parllel.testing.simulated_cuda import simulated_cuda

pytest.importorskip("ale_py", reason="no ale_py: install .[dev]")
pytest.importorskip("matplotlib", reason="no matplotlib: install .[train]")
pytest.importorskip("stable_baselines3", reason="no stable_baselines3: install .[dev]")

import bench_advantage
import bench_alternating
import bench_cages
import bench_frames
import bench_index
import bench_pixels
import bench_ragged
import bench_replay
import bench_rows
import bench_sampling
import bench_sequences
import bench_shift
import bench_step
import bench_vector
from matplotlib.image import imread
from stable_baselines3.common.vec_env import DummyVecEnv

from optional import needs
from ray_cluster import NO_CPU
from support import (
    advantage_on_device,
    atari,
    device_timing,
    frames_on_device,
    gpu_state,
    machine,
    replay_contestants,
    replay_on_device,
    report,
    rows_on_device,
    steps_on_device,
    whole_steps,
)
from support.advantage_batch import random_batch
from support.cartpole import cartpole_ppo
from support.device_timing import DeviceTimer
from support.pixel_learners import DqnSize, PpoSize
from support.row_trees import FRAMES, MEDIUM, ODD_FRAMES, SMALL, Tree
from support.sb3_learners import Games, OneGame
from support.still_envs import StepSize

pytestmark = pytest.mark.long

TREES = (
    Tree("frames", FRAMES, 20, 4),
    Tree("odd frames", ODD_FRAMES, 20, 4),
    Tree("small tree", SMALL, 20, 4),
    Tree("medium tree", MEDIUM, 40, 7),
)
SIZES = ((128, 16), (5, 3))
GPU_NAME = "NVIDIA Test 80GB"


def read_results(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON file's content, after a look at the picture beside it."""
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.json", f"{name}.png"]
    picture = imread(folder / f"{name}.png")
    assert picture.shape[0] > 100
    assert picture.std() > 0.01
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return content


def check_tables(content: dict[str, Any], printed: str, *, n_samples: int) -> None:
    """Hold the tables of a JSON file against what was printed and against themselves."""
    for table in content["tables"]:
        assert table["heading"] in printed
        for name, numbers in table["contestants"].items():
            assert f"\n{name} " in printed
            assert numbers["n_samples"] == n_samples
            low, high = numbers["first_quartile_us"], numbers["third_quartile_us"]
            assert 0 < low <= numbers["median_us"] <= high
            assert all(times == 1 for to, times in numbers["times"].items() if to == name)
    assert {"processor", "load", "versions", "commit"} == set(content["machine"])
    assert content["title"] in printed


# On the CPU


def test_the_rows_of_the_twin_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_rows.measure_twins(tmp_path / "new", TREES, repeats=2)
    content = read_results(tmp_path / "new", "rows_cpu")
    check_tables(content, capsys.readouterr().out, n_samples=10)
    assert len(content["tables"]) == 2 * len(TREES)
    assert content["gpu"] is None
    assert "no GPU" in content["title"]
    claims = [(target["claim"][:10], target["at_most"]) for target in content["targets"]]
    assert claims == [("frames: ti", 1.111), ("small tree", 0.6667)]


def test_the_advantages_of_the_twin_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_advantage.measure_twins(tmp_path, SIZES, repeats=2)
    content = read_results(tmp_path, "advantage_cpu")
    check_tables(content, capsys.readouterr().out, n_samples=2)
    assert [table["heading"] for table in content["tables"]] == [
        "(T, B) = (128, 16)",
        "(T, B) = (5, 3)",
    ]
    assert len(content["targets"]) == 3
    assert "no GPU" in content["title"]


def test_replay_buffers_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_replay, "SAMPLE_S", 0.0)
    bench_replay.measure_twins(tmp_path, race_size=400, sizes=(200, 400), n_frames=200, repeats=2)
    content = read_results(tmp_path, "replay_cpu")
    check_tables(content, printed := capsys.readouterr().out, n_samples=2)
    assert [len(table["contestants"]) for table in content["tables"]] == [5, 4, 2, 3]
    assert len(content["targets"]) == 4
    assert re.search(r"^samples\.observation +float32 +\(4, 10, 4\) +42 ", printed, re.MULTILINE)
    assert re.search(r"^promised [\d,]+ bytes, measured -?[\d,]+ of the process$", printed, re.M)


def test_shifts_of_images_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_shift, "SAMPLE_S", 0.0)
    bench_shift.measure(tmp_path, n_transitions=400, repeats=2)
    content = read_results(tmp_path, "shift_cpu")
    check_tables(content, capsys.readouterr().out, n_samples=2)
    assert [len(table["contestants"]) for table in content["tables"]] == [3, 3]
    assert len(content["targets"]) == 2


def test_windows_of_steps_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_sequences, "SAMPLE_S", 0.0)
    bench_sequences.measure(tmp_path, n_steps=800, sizes=(4000, 8000), repeats=2)
    content = read_results(tmp_path, "sequences_cpu")
    check_tables(content, capsys.readouterr().out, n_samples=2)
    assert [len(table["contestants"]) for table in content["tables"]] == [4, 2]
    assert len(content["targets"]) == 2


def test_packing_of_elements_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"CAPACITIES": {4: 80}, "BATCH_SIZE": 16, "REPEATS": 2, "N_PLACES": 1}
    for name, number in sizes.items():
        monkeypatch.setattr(bench_ragged, name, number)
    bench_ragged.measure_twins(tmp_path)
    content = read_results(tmp_path, "ragged_cpu")
    check_tables(content, capsys.readouterr().out, n_samples=2)
    assert [len(table["contestants"]) for table in content["tables"]] == [5]
    assert len(content["targets"]) == 3


def test_steps_of_a_vector_cage_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_vector, "N_SETS", 1)
    monkeypatch.setattr(bench_vector, "B", 2)
    bench_vector.main(tmp_path, repeats=2)
    content = read_results(tmp_path, "vector_cpu")
    check_tables(content, capsys.readouterr().out, n_samples=2)
    assert [table["heading"] for table in content["tables"]] == [
        "breakout, SAME_STEP",
        "pong, SAME_STEP",
        "pong, NEXT_STEP",
    ]
    assert [target["at_most"] for target in content["targets"]] == 3 * [1.031]


def test_samplers_that_take_turns_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"T": 2, "B": 4, "N_CORES": 1}.items():
        monkeypatch.setattr(bench_alternating, name, value)
    bench_alternating.main(tmp_path, repeats=2, parts_repeats=3)
    content = read_results(tmp_path, "alternating_cpu")
    race, parts = content["tables"]
    printed = capsys.readouterr().out
    check_tables({**content, "tables": [race]}, printed, n_samples=2)
    check_tables({**content, "tables": [parts]}, printed, n_samples=3)
    assert all(numbers["steps/s"] > 0 for numbers in race["contestants"].values())
    assert [target["at_most"] for target in content["targets"]] == [0.8, 0.8]


@pytest.fixture
def one_torch_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep torch at one thread: two of them wait for each other where tests run side by side."""
    n_threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
    set_num_threads(1)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    yield
    set_num_threads(n_threads)


PPO_SIZE = PpoSize(T=4, B=2, n_minibatches=2)
DQN_SIZE = DqnSize(T=4, B=2, batch_size=4, steps_per_update=4, n_kept=32)


@pytest.mark.usefixtures("one_torch_thread")
def test_learners_from_pixels_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"PPO_SIZE": PPO_SIZE, "DQN_SIZE": DQN_SIZE, "MOCK_T": 2, "MOCK_STEPS_S": (0.0, 1e-4)}
    repeats = ("ACTING_REPEATS", "PPO_REPEATS", "DQN_REPEATS", "MOCK_REPEATS")
    for name, value in {**sizes, **dict.fromkeys(repeats, 2)}.items():
        monkeypatch.setattr(bench_pixels, name, value)
    find_spec = importlib.util.find_spec  # torchrl starts for 20 seconds
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchrl" else find_spec(name)
    )
    bench_pixels.main(tmp_path)
    content = read_results(tmp_path, "pixels_cpu")
    check_tables(content, printed := capsys.readouterr().out, n_samples=2)
    assert "torchrl is not installed" in printed
    parts = [table["heading"].rpartition(": ")[2] for table in content["tables"]]
    learning = ["sampling", "learning", "all"]
    assert parts[2:9] == [*learning, *learning, "drawing one minibatch"]
    sampling, learning, whole = (table["contestants"] for table in content["tables"][2:5])
    for name, numbers in whole.items():
        least = sampling[name]["first_quartile_us"] + learning[name]["first_quartile_us"]
        assert numbers["third_quartile_us"] >= 0.999 * least  # rounded to 4 digits
    assert [target["at_most"] for target in content["targets"]] == [0.75, 0.75, 0.03, 0.85]


def test_games_of_stable_baselines3_are_the_same_in_each_vector_environment() -> None:
    with closing(Games(1)) as games, closing(DummyVecEnv([OneGame])) as dummy:
        dummy.seed(atari.SEED)
        np.testing.assert_array_equal(games.reset(), dummy.reset())
        rng, n_ends = np.random.default_rng(0), 0
        while n_ends < 2:
            action = rng.integers(0, atari.N_ACTIONS, 1)
            (one, *results, infos), (other, *expected, their_infos) = (
                envs.step(action) for envs in (games, dummy)
            )
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(results, expected)
            if results[1][0]:
                n_ends += 1
                last = (infos[0]["terminal_observation"], their_infos[0]["terminal_observation"])
                np.testing.assert_array_equal(*last)


def test_worker_processes_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"B": 2, "N_HERE": 1, "T": 32, "SAMPLE_S": 1e-4}.items():
        monkeypatch.setattr(bench_cages, name, number)
    bench_cages.main(tmp_path, repeats=2, numbers=(1, 2))
    curves = tmp_path / "cages_by_number_cpu.png"
    assert imread(curves).std() > 0  # it is not blank
    curves.unlink()
    content = read_results(tmp_path, "cages_cpu")
    serial, workers = "SerialCage", "ProcessCage, 2 workers"
    assert [list(table["contestants"]) for table in content["tables"]] == [
        ["AsyncVectorEnv", serial, workers],
        [serial, workers],
        [
            *(serial, workers, bench_cages.BOUND, bench_cages.SHARED, bench_cages.TURNS),
            "SubprocVecEnv of stable-baselines3",
        ],
        [serial, workers, bench_cages.SHARED],
        [serial, workers, bench_cages.SHARED],
        [f"{name}, B = {n}" for name in (serial, workers) for n in (1, 2)],
    ]
    assert len(content["targets"]) == 9


@needs("ray")
def test_actors_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: str
) -> None:
    import bench_ray

    from support import idle_envs

    few = functools.partial(bench_ray.RayCage, actor_options=NO_CPU)
    for name, new in {"B": 2, "SAMPLE_S": 1e-4, "cluster": nullcontext, "RayCage": few}.items():
        monkeypatch.setattr(bench_ray, name, new)
    modules = bench_cages, bench_ray, idle_envs  # which actors of this cluster can't import
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    bench_ray.main(tmp_path, repeats=2, steps_ms=(0.1,))
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)
    picture = tmp_path / "ray_by_step_time_cpu.png"
    assert imread(picture).std() > 0  # it is not blank
    picture.unlink()
    content = read_results(tmp_path, "ray_cpu")
    assert [list(table["contestants"]) for table in content["tables"]] == [
        ["SerialCage", "ProcessCage, 2 workers", "RayCage, 2 actors"]
    ] * 3
    assert len(content["targets"]) == 2


@needs("ray")
def test_the_time_from_which_actors_pay_is_that_of_their_overhead() -> None:
    import bench_ray

    cost = {"SerialCage": 0.0, "ProcessCage, 2 workers": 2e-4, "RayCage, 2 actors": 1e-3}
    found = bench_ray.pays_from({name: [seconds] * 3 for name, seconds in cost.items()})
    for name, step_us in found.items():
        others = bench_ray.B if name == "SerialCage" else bench_ray.B / 2
        dearer = 1.0 if name == "SerialCage" else bench_ray.DEARER
        ours = 1e3 + bench_ray.B / 2 * step_us
        assert ours == pytest.approx(dearer * (cost[name] * 1e6 + others * step_us))


def test_indexing_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_index, "REPEATS", 2)
    bench_index.measure(tmp_path)
    content = read_results(tmp_path, "index_cpu")
    check_tables(content, printed := capsys.readouterr().out, n_samples=2)
    assert [table["heading"] for table in content["tables"]] == [*bench_index.MOST_TIMES]
    assert all(f"target {what} / ndarray: measured" in printed for what in bench_index.MOST_TIMES)


def test_stacks_of_frames_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"N_TRANSITIONS": 800, "BATCH_SIZE": 16, "N_MINIBATCHES": 2}
    for name, number in {**sizes, "REPEATS": 2, "N_PLACES": 2}.items():
        monkeypatch.setattr(bench_frames, name, number)
    bench_frames.measure_twins(tmp_path)
    content = read_results(tmp_path, "frames_cpu")
    check_tables(content, printed := capsys.readouterr().out, n_samples=4)
    assert "16 of 800 transitions" in printed
    assert printed.count("target ") == len(content["targets"]) == 2
    assert "no GPU" in content["title"]


def test_a_sampler_and_a_loop_by_hand_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in {"T": 8, "B": 4, "REPEATS": 2, "PPO_STEPS": 256}.items():
        monkeypatch.setattr(bench_sampling, name, number)
    for name in ("SETTINGS", "T"):  # main sets them
        monkeypatch.setattr(cartpole_ppo, name, getattr(cartpole_ppo, name))
    n_threads = torch.get_num_threads()
    try:
        bench_sampling.main(tmp_path)
    finally:
        torch.set_num_threads(n_threads)
    content = read_results(tmp_path, "sampling_cpu")
    check_tables(content, printed := capsys.readouterr().out, n_samples=2)
    assert len(content["targets"]) == 1
    assert re.search(r"^BasicSampler: [\d,]+ environment steps per second$", printed, re.M)
    assert re.search(r"^PPO, 256 steps, 4 environments", printed, re.M)


def test_loops_by_hand_and_samplers_keep_what_environments_gave() -> None:
    T, B = 3, 8
    by_hand = atari.ByHand(T, B)
    by_hand.collect_batch()
    samples, _ = atari.alternating(T, B).collect_batch()
    for observation in (by_hand.observation, samples["observation"].full.to_ndarray()):
        newest = observation[1 : T + 1]
        assert newest[:, :, -1].any(axis=(-1, -2)).all()  # each step of each environment
        np.testing.assert_array_equal(newest[1:, :, :-1], newest[:-1, :, 1:])


def test_a_buffer_that_gathers_other_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    contestant = replay_contestants.build(
        replay_contestants.make_ours, replay_contestants.SMALL, 400
    )
    bench_replay.check_observations(contestant)
    contestant.buffer.samples["observation"].full[1:] = 0
    wrong = contestant.sample()
    wrong["observation"] += 1
    with pytest.raises(AssertionError):
        bench_replay.check_observations(contestant._replace(sample=lambda: wrong))


def test_a_twin_that_copies_other_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather_others(outputs: Any, leaves: Any, indices: Iterator[Any]) -> Any:
        return bench_rows.gather_ours(outputs, leaves, (np.roll(index, 1) for index in indices))

    monkeypatch.setitem(bench_rows.CONTESTANTS, bench_rows.OURS, gather_others)
    with pytest.raises(AssertionError):
        bench_rows.measure(TREES[2], repeats=1)


# On a simulated GPU


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Put a clock in the place of the device's; return what it has told."""
    told: list[float] = []

    def elapsed_s(start: Any, end: Any) -> float:
        assert start is not end
        assert start.done
        assert end.done
        told.append((len(told) + 1) * 1e-6)
        return told[-1]

    monkeypatch.setattr(device_timing, "elapsed_s", elapsed_s)
    return told


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Put answers in the place of NVML's, into the module itself: it must have the names."""
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed; dev brings it")
    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByPciBusId": lambda pciBusId: pciBusId,
        "nvmlDeviceGetName": lambda handle: GPU_NAME,
        "nvmlSystemGetDriverVersion": lambda: "580.65.06",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=80 * 2**30, used=2**30),
        "nvmlDeviceGetClockInfo": lambda handle, type: 1000 + type,
        "nvmlDeviceGetMaxClockInfo": lambda handle, type: 2000 + type,
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=50),
        "nvmlDeviceGetPowerUsage": lambda handle: 123_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    return pynvml


CLOCKS = "SM at 1,001 of 2,001 MHz | memory at 1,002 of 2,002 MHz | 123 of 700 W"
each_schedule = pytest.mark.parametrize("schedule", ["lazy", "random"])  # all is long here


@each_schedule
def test_the_rows_of_a_gpu_are_reported(
    schedule: str,
    tmp_path: Path,
    clock: list[float],
    nvml: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with simulated_cuda(schedule) as simulation:
        timer = DeviceTimer(flush_nbytes=4096)
        bench_rows.measure_device(tmp_path, TREES[1:3], (2,), timer=timer, repeats=2)
        del timer
        simulation.assert_no_leaks()
    content = read_results(tmp_path, "rows_nvidia_test_80gb")
    check_tables(content, printed := capsys.readouterr().out, n_samples=2)
    headings = [table["heading"].partition(":")[0] for table in content["tables"]]
    operations = ("gather", "scatter", "write of a slice")
    trees = ("odd frames", "small tree")
    assert headings == [
        *(f"{operation}, {tree}" for tree in trees for operation in operations),
        "time step of 2 environments, pinned memory to tree",
    ]
    assert len(clock) == 2 * sum(len(table["contestants"]) for table in content["tables"])
    assert (
        f"{GPU_NAME} | driver 580.65.06 | 1,024 of 81,920 MiB of memory used | {CLOCKS}" in printed
    )
    assert printed.count(CLOCKS) == 1 + len(content["tables"])
    assert content["gpu"]["name"] == GPU_NAME
    for table in content["tables"]:
        assert table["gpu"]["sm_clock_mhz"] == 1001
        ours = next(numbers for name, numbers in table["contestants"].items() if "parllel" in name)
        assert min(ours["call us"], ours["GB/s"], *ours["times"].values()) > 0
        assert len(ours["times"]) == 2
        assert {"GB/s", "call us"}.isdisjoint(table["contestants"]["nothing"])
        assert schedule == "random" or ours["queued"] == 1


@each_schedule
@pytest.mark.usefixtures("one_torch_thread")
def test_learners_from_pixels_on_a_gpu_are_reported(
    schedule: str,
    tmp_path: Path,
    nvml: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {"DEVICE_PPO": PPO_SIZE, "DEVICE_DQN": DQN_SIZE, "DEVICE_REPEATS": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(bench_pixels, name, value)
    with simulated_cuda(schedule):
        bench_pixels.main(tmp_path)
    content = read_results(tmp_path, "pixels_nvidia_test_80gb")
    check_tables(content, printed := capsys.readouterr().out, n_samples=2)
    assert "13,900" in printed
    assert [table["heading"] for table in content["tables"]] == [
        "PPO, 4 steps",
        "DQN, 2 updates of 4 for 4 steps",
    ]
    for table in content["tables"]:
        for numbers in table["contestants"].values():
            assert numbers["busy"] == 0.5
            # Each half of the environments: a launch for results, a copy for actions.
            assert numbers["launches"] > 0
            assert numbers["copies"] > 0
            assert numbers["steps/s"] > 0
        sampling, both = table["contestants"].values()
        assert both["launches"] > sampling["launches"]


@each_schedule
def test_the_advantages_of_a_gpu_are_reported(
    schedule: str,
    tmp_path: Path,
    clock: list[float],
    nvml: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with simulated_cuda(schedule) as simulation:
        timer = DeviceTimer(flush_nbytes=4096)
        bench_advantage.measure_device(tmp_path, SIZES, timer=timer, repeats=2)
        del timer
        simulation.assert_no_leaks()
    content = read_results(tmp_path, "advantage_nvidia_test_80gb")
    check_tables(content, capsys.readouterr().out, n_samples=2)
    assert [list(table["contestants"]) for table in content["tables"]] == 2 * [
        ["parllel", "torch, loop over time", "copy", "nothing"]
    ]


RINGS = (frames_on_device.Ring(30, 2, 7), frames_on_device.Ring(9, 3, 4, 3, (5, 7)))


@each_schedule
def test_the_frames_of_a_gpu_are_reported(
    schedule: str,
    tmp_path: Path,
    clock: list[float],
    nvml: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with simulated_cuda(schedule) as simulation:
        timer = DeviceTimer(flush_nbytes=4096)
        bench_frames.measure_device(tmp_path, RINGS, timer=timer, repeats=2)
        del timer
        simulation.assert_no_leaks()
    content = read_results(tmp_path, "frames_nvidia_test_80gb")
    check_tables(content, capsys.readouterr().out, n_samples=2)
    assert len(content["tables"]) == len(RINGS)
    for table in content["tables"]:
        ours = table["contestants"]["parllel"]
        assert (ours["launches"], ours["copies"], ours["waits"]) == (1, 0, 0)
        assert table["contestants"][frames_on_device.STACKS]["launches"] == 2
        assert table["contestants"][frames_on_device.FRAMES]["launches"] > 2
        assert table["contestants"]["copy"]["copies"] == 1


def test_a_contestant_that_gathers_other_frames_is_found() -> None:
    with simulated_cuda("eager"):
        rows = frames_on_device.FrameRows(RINGS[0], [np.arange(0, 60, 9)])
        frames_on_device.check_results(rows)
        rows.ages.fill_(0)
        with pytest.raises(AssertionError, match=r"select of frames"):
            frames_on_device.check_results(rows)
        rows.close()


RACES = (
    replay_on_device.Race("small transitions", replay_contestants.SMALL, 400, 32),
    replay_on_device.Race("frames", replay_contestants.FRAMES, 200, 8),
)


@each_schedule
def test_the_replay_buffers_of_a_gpu_are_reported(
    schedule: str,
    tmp_path: Path,
    clock: list[float],
    nvml: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with simulated_cuda(schedule) as simulation:
        timer = DeviceTimer(flush_nbytes=4096)
        bench_replay.measure_device(tmp_path, RACES, timer=timer, repeats=2)
        del timer
        simulation.assert_no_leaks()
    content = read_results(tmp_path, "replay_nvidia_test_80gb")
    check_tables(content, capsys.readouterr().out, n_samples=2)
    draws, updates = content["tables"][::2], content["tables"][1::2]
    assert [table["heading"] for table in draws] == [str(race) for race in RACES]
    for table in draws:
        work = {name: each.get("launches") for name, each in table["contestants"].items()}
        assert (work[replay_on_device.OURS], work[replay_on_device.PRIORITIZED]) == (2, 3)
        assert work[replay_on_device.TORCH] > 5
        assert work[replay_on_device.TORCH_PRIORITIZED] > work[replay_on_device.TORCH]
    for table in updates:
        assert table["contestants"][replay_on_device.UPDATED]["launches"] == 1


def test_priorities_of_the_plain_loop_decide_what_is_drawn() -> None:
    with simulated_cuda("eager"):
        replay, _ = replay_contestants.make_ours(replay_contestants.SMALL, 400, storage="device")
        plain = replay_on_device.TorchReplay(replay, 64)
        plain.priority[:] = 0
        plain.update_priorities(torch.tensor([3, 77]), torch.tensor([1.0, -1.0]))
        minibatch = plain.sample_by_priority()
        assert minibatch["index"].bincount(minlength=400)[[3, 77]].tolist() == [32, 32]
        assert minibatch["weight"].tolist() == 64 * [1]
        plain.update_priorities(torch.tensor([3]), torch.tensor([3.0]))
        minibatch = plain.sample_by_priority()
        expected = np.where(minibatch["index"] == 3, (1 / 3**0.6) ** 0.4, 1)
        np.testing.assert_allclose(minibatch["weight"], expected, rtol=1e-5)
        replay.close()


def test_a_buffer_of_a_gpu_that_gathers_other_rows_is_found() -> None:
    with simulated_cuda("eager"):
        replay, sample = replay_contestants.make_ours(
            replay_contestants.SMALL, 400, storage="device"
        )
        plain = replay_on_device.TorchReplay(replay, 16)
        replay_on_device.check_results({"ours": sample, "torch": plain.sample}, replay)
        plain.rows["reward"] += 1
        with pytest.raises(AssertionError, match=r"torch.*reward"):
            replay_on_device.check_results({"torch": plain.sample}, replay)
        replay.close()


STEPS = (StepSize(2, (3, 5)), StepSize(3, (4, 5, 3)))


def test_whole_steps_of_the_host_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_step.measure_host(tmp_path, STEPS, repeats=2)
    content = read_results(tmp_path, "step_cpu")
    check_tables(content, capsys.readouterr().out, n_samples=2)
    assert [list(table["contestants"]) for table in content["tables"]] == [
        ["parllel", "NumPy, by hand"],
        ["parllel", "parllel, frames", "NumPy, by hand"],
    ]
    assert "no GPU" in content["title"]


@each_schedule
def test_whole_steps_of_a_gpu_are_reported(
    schedule: str,
    tmp_path: Path,
    clock: list[float],
    nvml: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with simulated_cuda(schedule) as simulation:
        timer = DeviceTimer(flush_nbytes=4096)
        bench_step.measure_device(tmp_path, STEPS, timer=timer, repeats=2, copy_nbytes=4096)
        del timer
        simulation.assert_no_leaks()
    content = read_results(tmp_path, "step_nvidia_test_80gb")
    check_tables(content, capsys.readouterr().out, n_samples=2)
    *tables, large_copy, host_calls = content["tables"]
    assert large_copy["heading"] == "one copy of 4,096 bytes on the device"
    assert "RowCopy.run of 6 leaves" in host_calls["contestants"]
    ways, steps = tables[::2], tables[1::2]
    for table in ways:
        work = {name: each.get("copies") for name, each in table["contestants"].items()}
        assert work["parllel, one launch"] == 0
        assert work["copy of the observations, then a launch"] == work["one cudaMemcpyAsync"] == 1
    for table, size in zip(steps, STEPS, strict=True):
        contestants = table["contestants"]
        assert ("parllel, frames" in contestants) == size.are_stacks
        # The clock has told a microsecond more each time; a batch has 8 steps.
        assert all(each["third_quartile_us"] <= len(clock) / 8 for each in contestants.values())
        ours = contestants["parllel"]
        # 2 launches of each step, and that of the rotation; a wait of each step.
        assert ours["launches"] == 2 + 1 / 8
        assert ours["waits"] == 1
        assert contestants["parllel, local memory"]["launches"] == 0
        assert contestants["torch, by hand"]["copies"] >= 8


def test_a_loop_that_keeps_other_steps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = bench_step.host_loops(STEPS[1])
    whole_steps.check_results(loops)
    for name in ("parllel", "parllel, frames"):
        loops[name].close()
        del loops[name]
    other = whole_steps.ByNumpy(STEPS[1])
    monkeypatch.setattr(other, "collect_batch", lambda: None)
    with pytest.raises(AssertionError, match="other"):
        whole_steps.check_results({**loops, "other": other})


def test_our_contestants_are_one_launch_and_no_copy() -> None:
    with simulated_cuda("lazy") as simulation:
        row_arrays = rows_on_device.RowArrays(TREES[2], [np.arange(4)])
        step_arrays = steps_on_device.StepArrays(2)
        batch = [cuda.to_device(each) for each in random_batch(5, 3)]
        calls = [
            *(each.contestants(row_arrays)["parllel"] for each in rows_on_device.OPERATIONS),
            steps_on_device.contestants(step_arrays)[steps_on_device.OURS],
            advantage_on_device.estimate_ours(batch),
        ]
        for call in calls:
            before = copy.copy(simulation.counters)
            call()
            counted = simulation.counters.since(before)
            assert counted == Counters(launches=1)


def test_a_copy_engine_that_brings_other_observations_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with simulated_cuda("lazy"):
        arrays = steps_on_device.StepArrays(2)
        steps_on_device.check_results(arrays)
        monkeypatch.setattr(cuda, "copy_to_device", lambda host, *, out_device: out_device.fill(1))
        with pytest.raises(AssertionError, match=r"copy of the observations"):
            steps_on_device.check_results(arrays)
        arrays.close()


def test_a_contestant_of_a_gpu_that_copies_other_rows_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_others(copy: RowCopy, written: Any, read: Any) -> None:
        run(copy, written, read[::-1].copy() if isinstance(read, cuda.library().ndarray) else read)

    run = RowCopy.run
    with simulated_cuda("lazy"):
        arrays = rows_on_device.RowArrays(TREES[2], [np.arange(4)])
        rows_on_device.check_results(arrays)
        monkeypatch.setattr(RowCopy, "run", run_others)
        with pytest.raises(AssertionError, match=r"gather.*parllel"):
            rows_on_device.check_results(arrays)


def test_a_sample_tells_whether_the_device_waited_for_the_host(clock: list[float]) -> None:
    for schedule, is_queued in (("eager", False), ("lazy", True)):
        with simulated_cuda(schedule):
            sample = DeviceTimer(flush_nbytes=4096).sample(lambda: None)
            assert sample.is_queued is is_queued
            assert sample.device_s == clock[-1]
            assert sample.call_s > 0


def test_blocks_of_another_size_are_launched() -> None:
    # Of few rows, no more than a few share a block, however large it may be.
    tree = Tree("frames", FRAMES, 257, 256)
    with simulated_cuda("eager") as simulation:
        arrays = rows_on_device.RowArrays(tree, [np.arange(256)])
        for call in rows_on_device.gathers(arrays).values():
            call()
        sizes = [math.prod(launch.block) for launch in simulation.launches]
    assert sizes == [launching.SIZES.copy_threads, *rows_on_device.BLOCKS]


@needs("cupy")
def test_cupy_has_the_clock() -> None:
    # In a process of its own: other tests have imported CuPy half, or stand-ins for it.
    program = """if True:
        import inspect
        import cupy
        print(cupy.cuda.get_elapsed_time.__doc__)
        print(inspect.signature(cupy.cuda.Event).parameters["disable_timing"].default)
    """
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    *documented, default = result.stdout.splitlines()
    assert documented[0].startswith("get_elapsed_time(start_event, end_event)")
    assert "Elapsed time in milliseconds" in "\n".join(documented)
    assert default == "False"


def test_what_a_gpu_does_not_tell_is_left_open(
    monkeypatch: pytest.MonkeyPatch, nvml: ModuleType
) -> None:
    def refuse(handle: str) -> int:
        raise nvml.NVMLError_NotSupported

    monkeypatch.setattr(nvml, "nvmlDeviceGetPowerUsage", refuse)
    monkeypatch.setattr(nvml, "nvmlDeviceGetMemoryInfo", refuse)
    with simulated_cuda("lazy"):
        state = gpu_state.read_gpu()
    assert state.power_w is None
    assert state.describe_clocks().endswith("MHz | ? of 700 W")
    assert state.describe_device().endswith("? of ? MiB of memory used")


def test_without_nvml_torch_tells_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: GPU_NAME)
    with simulated_cuda("lazy"):
        state = gpu_state.read_gpu()
    assert state.name == GPU_NAME
    assert state.describe_clocks() == "SM at ? of ? MHz | memory at ? of ? MHz | ? of ? W"


def test_without_matplotlib_there_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report.Report("some", "A title", []).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["some_cpu.json"]
    assert "no picture" in capsys.readouterr().out


# The command, and the commit


@pytest.mark.parametrize("bench", [bench_rows, bench_advantage, bench_frames, bench_replay])
def test_a_gpu_is_used_where_there_is_one(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[str, Path]] = []
    for name in ("measure_twins", "measure_device"):
        monkeypatch.setattr(
            bench, name, lambda folder, *_, name=name, **__: measured.append((name, folder))
        )
    monkeypatch.setattr(bench, "DeviceTimer", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--out", str(tmp_path)])
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    bench.main()
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["bench.py"])
    bench.main()
    assert measured == [("measure_twins", tmp_path), ("measure_device", report.RESULTS)]


def test_results_do_not_make_a_commit_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    code, result = tmp_path / "bench" / "machine.py", tmp_path / "bench" / "results" / "a.json"
    result.parent.mkdir(parents=True)
    monkeypatch.setattr(machine, "__file__", str(code))
    assert machine.describe_machine()["commit"] == "none yet"
    for file in (code, result):
        file.write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "a")
    commit = machine.describe_machine()["commit"]
    assert re.fullmatch("[0-9a-f]{7,}", commit)
    result.write_text("2")
    assert machine.describe_machine()["commit"] == commit
    code.write_text("2")
    assert machine.describe_machine()["commit"] == f"{commit}-dirty"
