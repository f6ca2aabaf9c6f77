"""Each example: the same numbers in each memory, resumed bit for bit, and run as a program."""

import csv
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

from continuous_envs import make_road
from example_runs import EXAMPLES, changed, load, train
from games import make_games
from optional import needs
from parllel.cages import SerialCage, spawn_seeds
from parllel.patterns import build_example, build_sample_tree
from parllel.samplers import BasicSampler
from parllel.schedules import linear
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Walk
from parllel.torch.agents import QAgent
from parllel.torch.algos import DQNSettings, PPOSettings, SACSettings
from parllel.torch.models import Mlp, NatureCnn, QNetwork
from parllel.transforms import EstimateAdvantage
from schedules import each_schedule


class Small(NamedTuple):
    """An example with small numbers: four batches, and a checkpoint after each second one.

    Args:
        name: its file.
        config: arguments of the run, with the steps of these batches.
        constants: those of its module that are changed.
        packages: those that it needs beside parllel.
        is_long: whether it is for the long run, and what tells it from the short one's.
    """

    name: str
    config: dict[str, Any]
    constants: dict[str, Any]
    packages: tuple[str, ...] = ()
    is_long: str = ""

    def train(self, out: Path, **config: Any) -> tuple[list[Any], Any]:
        module = load(self.name)
        with changed(module, self.constants):
            return train(module, out, **{**self.config, "storage": "local", "seed": 3, **config})

    @property
    def half(self) -> int:
        """The number of steps at the checkpoint in the middle."""
        steps: int = self.config["steps"]
        return steps // 2


def make_cages(make_env: Any, n_envs: int, *, seed: int, n_workers: int) -> list[SerialCage]:
    """Make a cage in the place of each worker, which would take long to start."""
    seeds = np.array_split(np.array(spawn_seeds(seed, n_envs)), n_workers)
    return [SerialCage(make_env, n_envs=len(own), seed=list(own)) for own in seeds]


def make_short_atari(**settings: Any) -> Any:
    """Make Atari's games, but with episodes of 10 steps."""
    from ale_py import AtariVectorEnv

    return AtariVectorEnv(**settings, max_num_frames_per_episode=40)


def make_short_race() -> gym.Env[Any, Any]:
    """Make CarRacing as the example sees it, but with episodes of 6 steps."""
    race = gym.make("CarRacing-v3", max_episode_steps=6)
    return gym.wrappers.FrameStackObservation(load("pixels_sac").Small(race), 3)


def make_short_pendulum() -> gym.Env[Any, Any]:
    """Make Pendulum, but with episodes of 10 steps: some end in each run, and evaluations soon."""
    return gym.make("Pendulum-v1", max_episode_steps=10)


FOUR_ENVS = {"N_ENVS": 4, "CHECKPOINT_EVERY": 64}
TWO_ENVS = {"N_ENVS": 2, "CHECKPOINT_EVERY": 32, "EVALUATE_EVERY": 32}
ON_POLICY = {**FOUR_ENVS, "T": 8}
TWO_PASSES = {"SETTINGS": PPOSettings(n_epochs=2, learning_rate=linear(2e-3, 0.0))}
PENDULUM = {"make_env": make_short_pendulum}
OFF_POLICY: dict[str, Any] = {
    **FOUR_ENVS,
    "T": 8,
    "LEARN_AFTER": 32,
    "SETTINGS": DQNSettings(batch_size=8, n_updates=2, target_period=3, learning_rate=1e-3),
}
GAMES = {
    "AtariVectorEnv": make_games,
    "NatureCnn": partial(NatureCnn, n_features=8),
    "N_EVAL_ENVS": 2,
    "N_EPISODES": 2,
    "N_LAST_EPISODES": 4,
    "EVALUATE_EVERY": 64,
}
SEQUENCES = {
    **OFF_POLICY,
    "RING": 24,
    "LENGTH": 4,
    "BURN_IN": 2,
    "EVALUATE_EVERY": 32,
    "SETTINGS": replace(OFF_POLICY["SETTINGS"], n_steps=2, discount=0.9, rescales_values=True),
}
CRITICS = {
    **OFF_POLICY,
    "SETTINGS": SACSettings(batch_size=8, n_updates=2, target_period=3, learning_rate=1e-3),
    "SIZES": (8, 8),
    "EVALUATE_EVERY": 32,
    "LOG_EVERY": 16,
    "N_EVAL_ENVS": 2,
}
RACING = {**CRITICS, "RING": 32, "MAX_STEPS": 20, "N_FEATURES": 4, "N_WORKERS": 0}
LOOP = {**FOUR_ENVS, "RING": 256, "LEARN_AFTER": 32, "LEARN_EVERY": 8, "TARGET_EVERY": 24}
DATA = {
    **TWO_ENVS,
    "T": 16,
    "FULL_SIZE": 64,
    "CHECKPOINT_EVERY": 64,
    "N_EPISODES": 4,
    "SETTINGS": DQNSettings(batch_size=8, n_updates=8, target_period=3, learning_rate=1e-3),
}
STEPS = {"steps": 128}
ATARI_PPO = Small("atari_ppo", STEPS, {**ON_POLICY, **GAMES}, ("ale_py",))
ATARI_PQN = Small("atari_pqn", STEPS, {**ON_POLICY, "N_MINIBATCHES": 4, **GAMES}, ("ale_py",))
ATARI_DQN = Small(
    "atari_dqn",
    {**STEPS, "ring": 96},
    {**OFF_POLICY, "EXPLORE_STEPS": 96, "LOG_EVERY": 32, **GAMES},
    ("ale_py",),
)
PIXELS_SAC = Small("pixels_sac", STEPS, {**RACING, "make_env": make_road})
PIXELS_PPO = Small("pixels_ppo", STEPS, {**ON_POLICY, "build_cages": make_cages}, ("minigrid",))
CASES = [
    Small("cartpole_ppo", STEPS, {**ON_POLICY, **TWO_PASSES}),
    PIXELS_PPO,
    Small("multi_agent_ppo", STEPS, {**ON_POLICY, **TWO_PASSES}, ("mpe2",)),
    Small("memory_ppo", STEPS, {**ON_POLICY, **TWO_PASSES}),
    Small("memory_dqn", STEPS, SEQUENCES),
    Small("pixels_dqn", STEPS, {**OFF_POLICY, "RING": 24, "EVALUATE_EVERY": 32}, ("minatar",)),
    Small("pendulum_ppo", STEPS, {**ON_POLICY, **TWO_PASSES, **PENDULUM}),
    Small("pendulum_sac", STEPS, {**CRITICS, **PENDULUM, "RING": 24}),
    PIXELS_SAC,
    ATARI_PPO,
    ATARI_PQN,
    ATARI_DQN,
    Small("pointcloud_ppo", STEPS, {**ON_POLICY, **TWO_PASSES}),
    Small("graph_ppo", STEPS, {**ON_POLICY, **TWO_PASSES, "N_STEPS": 6}),
    Small("offline_dqn", STEPS, DATA, ("minari", "h5py")),
    Small("loop_by_hand", STEPS, {**LOOP, "BATCH_SIZE": 8, "EXPLORE_STEPS": 96, "LOG_EVERY": 16}),
    PIXELS_PPO._replace(constants=ON_POLICY, is_long="with workers"),
    PIXELS_SAC._replace(
        constants={**RACING, **TWO_ENVS, "LEARN_AFTER": 16, "make_env": make_short_race},
        config={"steps": 64},
        packages=("Box2D", "pygame"),
        is_long="with CarRacing",
    ),
    *(
        case._replace(
            constants={**case.constants, **TWO_ENVS, "AtariVectorEnv": make_short_atari}
            | ({"LEARN_AFTER": 16, "LOG_EVERY": 16} if case is ATARI_DQN else {}),
            config={**case.config, "steps": 64},
            is_long="with Atari",
        )
        for case in (ATARI_PPO, ATARI_PQN, ATARI_DQN)
    ),
]
IN_SHORT_RUN = ("loop_by_hand", "pixels_ppo")  # the others are built alike
each_example = pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=[
                needs("tyro", *case.packages),
                *([] if case.name in IN_SHORT_RUN and not case.is_long else [pytest.mark.long]),
            ],
            id=f"{case.name} {case.is_long}".strip(),
        )
        for case in CASES
    ],
)


class Alone(NamedTuple):
    """A run that was left alone: what it logged, what its example returned, and its folder."""

    logs: list[Any]
    result: Any
    out: Path


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Small], Alone]:
    """Return a function that returns the run of an example, which all tests share."""
    runs: dict[tuple[str, str], Alone] = {}

    def run(case: Small) -> Alone:
        key = case.name, case.is_long
        if key not in runs:
            out = tmp_path_factory.mktemp(case.name) / "alone"
            runs[key] = Alone(*case.train(out), out)
        return runs[key]

    return run


@each_example
@each_schedule
def test_an_example_gives_the_same_numbers_in_each_memory(
    case: Small,
    schedule: str,
    seed: int,
    left_alone: Callable[[Small], Alone],
    tmp_path: Path,
) -> None:
    with simulated_cuda(schedule, seed):
        logs, _ = case.train(tmp_path / "device", storage="device")
    assert logs == left_alone(case).logs
    assert len({step for step, _ in logs}) >= 3


@each_example
def test_an_example_goes_on_where_it_was_cut_off(
    case: Small, left_alone: Callable[[Small], Alone], tmp_path: Path
) -> None:
    out = tmp_path / "cut"
    begun, result = case.train(out, cut_after=case.half)
    assert result is None
    logs, result = case.train(out, resume=True)
    alone = left_alone(case)
    assert begun + logs == alone.logs
    assert 0 < len(logs) < len(alone.logs)
    if isinstance(result, float):
        assert result == alone.result
    from safetensors.torch import load_file  # what tests of a device do without

    weights = [load_file(folder / "model.safetensors") for folder in (out, alone.out)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@each_example
def test_an_example_depends_on_its_seed(
    case: Small, left_alone: Callable[[Small], Alone], tmp_path: Path
) -> None:
    logs, _ = case.train(tmp_path / "other", seed=4, cut_after=case.half)
    assert logs
    assert logs != left_alone(case).logs[: len(logs)]


def test_an_example_reads_from_top_to_bottom_in_150_lines() -> None:
    """Behind the lines that tell uv what to install, which a reader of the program skips."""
    programs = {path: path.read_text().split("# ///\n")[-1] for path in EXAMPLES.glob("*.py")}
    lengths = {path.name: len(program.splitlines()) for path, program in programs.items()}
    assert {name: length for name, length in lengths.items() if length >= 150} == {}
    assert {f"{case.name}.py" for case in CASES} | {"sweep_ray.py", "to_hub.py"} == lengths.keys()


def test_an_example_learns_in_runs_of_few_steps_too() -> None:
    for path in EXAMPLES.glob("*.py"):
        if "learn_after=" in (text := path.read_text()):
            assert "learn_after=min(LEARN_AFTER, config.steps // 2)," in text, path.name


@needs("ale_py", "tyro")
def test_pqn_learns_the_lambda_returns_of_the_paper() -> None:
    """In one pass over one minibatch, whose loss is that of the network before."""
    example = load("atari_pqn")
    torch.manual_seed(0)
    step = build_example(Walk, storage="local")
    model = QNetwork(Mlp(3), 4)
    agent = QAgent(model, step["observation"], epsilon=0.5, keeps_value=True)
    samples = build_sample_tree(step, agent, batch_shape=(64, 3))
    with SerialCage(Walk, n_envs=3, seed=0) as cage:
        batch, _ = BasicSampler([cage], agent, samples).collect_batch()
        with torch.no_grad():
            values = model(batch["observation"][:65].to_torch().reshape(-1, 3)).reshape(65, 3, 4)
    names = ("action", "reward", "terminated", "truncated", "final_value")
    rows = {name: batch[name].to_ndarray() for name in names}
    assert rows["terminated"].any()
    assert rows["truncated"].any()
    best = values.numpy().max(-1)
    following, expected = best[64].astype(np.float64), np.zeros((64, 3))
    for t in reversed(range(64)):
        mixed = example.LAMBDA * following + (1 - example.LAMBDA) * best[t + 1]
        mixed = np.where(rows["truncated"][t], rows["final_value"][t], mixed)  # not in the paper
        expected[t] = rows["reward"][t] + example.DISCOUNT * mixed * ~rows["terminated"][t]
        following = expected[t]
    batch = EstimateAdvantage(discount=example.DISCOUNT, gae_lambda=example.LAMBDA)(batch)
    np.testing.assert_allclose(batch["return_"].to_ndarray(), expected, rtol=1e-4, atol=1e-4)
    with changed(example, {"N_MINIBATCHES": 1, "N_EPOCHS": 1}):
        optimizer = torch.optim.RAdam(model.parameters(), lr=1e-3)
        pqn = example.PQN(agent, optimizer, np.random.default_rng(0))
        loss = pqn.optimize(batch)["loss"]
    taken = np.take_along_axis(values.numpy()[:64], rows["action"][..., None], -1)[..., 0]
    assert loss == pytest.approx(0.5 * np.mean((taken - expected) ** 2), rel=1e-4)


@pytest.mark.long
@needs("matplotlib", "ray", "tensorboard", "tqdm", "tyro")
def test_a_sweep_compares_learning_rates_and_tells_of_runs_that_failed(
    ray_cluster: str, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    (out / "0.0001" / "1").mkdir(parents=True)
    (out / "0.0001" / "1" / "config.json").touch()  # another run has this folder
    command = [sys.executable, str(EXAMPLES / "sweep_ray.py"), "--learning-rates", "1e-4", "2e-3"]
    command += ["--n-seeds", "2", "--steps", "2048", "--out", str(out), "--address", ray_cluster]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line and "pid=" not in line]
    assert "a run with learning rate 0.0001 failed" in result.stdout
    assert any(re.match(r" +0\.0001  too few runs: \[\d+", line) for line in lines)
    last = re.fullmatch(r" +0\.002  +(\S+)  \[ *(\S+), +(\S+)\]  2 runs", lines[-1])
    assert last is not None
    scores = []
    for seed in ("0", "1"):
        with (out / "0.002" / seed / "metrics.csv").open(newline="") as file:
            scores.append(float(list(csv.DictReader(file))[-1]["train/episode_return"]))
    assert float(last[1]) == pytest.approx(np.mean(scores), abs=0.06)


@pytest.mark.long
@needs("imageio", "matplotlib", "minigrid", "tensorboard", "tqdm", "tyro")
def test_the_demo_ends_with_a_curve_and_one_film_of_both_agents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    example = load("pixels_ppo")
    with changed(example, PIXELS_PPO.constants):
        example.main(example.Config(out=tmp_path, steps=128, storage="local"))
    names = {path.name for path in tmp_path.iterdir()}
    assert {name for name in names if name.endswith(".gif")} == {"video.gif"}
    with Image.open(tmp_path / "video.gif") as film:
        width, height = film.size
        assert width == 2 * 160 + 8  # two pictures of 5 by 5 tiles of 32 pixels, and a gap
        assert 160 + 10 < height < 160 + 40  # below their names
    told = capsys.readouterr().out.splitlines()
    assert "video.gif" in told[-2]
    assert told[-1].startswith("score ")


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
@needs("matplotlib", "tensorboard", "tqdm", "tyro")
def test_both_curves_are_in_one_picture_and_the_score_is_that_of_the_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load("memory_ppo")
    with changed(example, ON_POLICY):
        example.main(example.Config(out=tmp_path, steps=256, storage="local"))
        first = (tmp_path / "learning_curve.png").read_bytes()
        *_, told, score = capsys.readouterr().out.splitlines()
        example.main(example.Config(out=tmp_path, steps=256, storage="local", resume=True))
    assert capsys.readouterr().out.splitlines()[-2:] == [told, score]
    assert (tmp_path / "learning_curve.png").read_bytes() == first
    folders = {"with": tmp_path, "without": tmp_path / "feed_forward"}
    ends = {}
    for name, folder in folders.items():
        with (folder / "metrics.csv").open(newline="") as file:
            ends[name] = [row["train/episode_return"] for row in csv.DictReader(file)][-1]
    assert score == f"score {float(ends['with']):.1f}"
    assert told.endswith(f"without a memory: {float(ends['without']):.1f}")
    assert ends["with"] != ends["without"]


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
