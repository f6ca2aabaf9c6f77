"""Learning from clouds of points: as from padded rows, in each memory, and after a resume."""

import math
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jagged_envs import MOST, PaddedClouds, Shapes
from jagged_models import CloudActorCritic, CloudNet
from torch import nn

from example_runs import CutOffError, Numbers
from long_run import all_but, all_but_first
from parllel import ArrayDict, Jagged
from parllel.arrays import Array, JaggedArray
from parllel.cages import Cage, ProcessCage, SerialCage, spawn_seeds
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import (
    PrioritizedReplayBuffer,
    PrioritizedSequenceReplayBuffer,
    ReplayBuffer,
    SequenceReplayBuffer,
)
from parllel.runners import Checkpoints, RLRunner, every
from parllel.samplers import BasicSampler, RecurrentSampler
from parllel.schedules import linear
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.agents import CategoricalPgAgent, QAgent, RecurrentPgAgent, RecurrentQAgent
from parllel.torch.algos import DQN, PPO, DQNSettings, PPOSettings
from parllel.torch.algos.left_out import clear_rows
from parllel.torch.distributions import Categorical
from parllel.torch.models import (
    ActorCritic,
    Gru,
    NormalizeObservations,
    QNetwork,
    RecurrentNetwork,
)
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage
from parllel.tree.not_finite import find_not_finite
from schedules import each_schedule

T, B, N_BATCHES, SEED = 6, 4, 5, 5
KINDS = {
    "ppo": None,
    "recurrent ppo": None,
    "dqn": ReplayBuffer,
    "dqn by priority": PrioritizedReplayBuffer,
    "sequences": SequenceReplayBuffer,
    "sequences by priority": PrioritizedSequenceReplayBuffer,
}
each_kind = pytest.mark.parametrize("kind", all_but(KINDS, ["ppo", "sequences by priority"]))
each_kind_briefly = pytest.mark.parametrize("kind", all_but_first(KINDS))


def make_parts(kind: str, example: ArrayDict) -> tuple[ArrayDict, dict[str, Any]]:
    """Return the sample tree, and the agent, the algorithm and the replay buffer of a kind."""
    observation, has_state = example["observation"], "recurrent" in kind or "sequences" in kind
    device = example["reward"].to_torch().device
    core = partial(RecurrentNetwork, CloudNet(), Gru(6, 6))
    if "ppo" in kind:
        head = ActorCritic(nn.Identity(), 2, n_features=6)
        model = (core(head) if has_state else CloudActorCritic()).to(device)
        make_agent: Any = RecurrentPgAgent if has_state else CategoricalPgAgent
        agent = make_agent(model, Categorical(2), observation)
        samples = build_sample_tree(example, agent, batch_shape=(T, B))
        settings = PPOSettings(n_epochs=2, n_minibatches=2, learning_rate=linear(0.01, 0.0))
        optimizer = torch.optim.Adam(model.parameters())
        ppo = PPO(agent, optimizer, settings, rng=np.random.default_rng(SEED))
        return samples, {"agent": agent, "algorithm": ppo}
    head = QNetwork(nn.Identity(), 2, n_features=6)
    model = (core(head) if has_state else CloudNet(2)).to(device)
    if has_state:
        agent = RecurrentQAgent(model, observation, linear(1.0, 0.1), keeps_state=True)
    else:
        agent = QAgent(model, observation, linear(1.0, 0.1))
    samples = build_sample_tree(example, agent, batch_shape=(T, B), full_size=4 * T)
    window = {"length": 4, "burn_in": 2, "episode_end": "pad"} if has_state else {}
    replay = KINDS[kind](samples, rng=np.random.default_rng(SEED), **window)
    optimizer = torch.optim.Adam(model.parameters())
    numbers = {"batch_size": 8, "n_updates": 2, "target_period": 3}
    numbers |= {"n_steps": 2, "discount": 0.9} if has_state else {}
    dqn = DQN(agent, replay, optimizer, DQNSettings(**numbers, learning_rate=linear(0.01, 0.0)))
    return samples, {"agent": agent, "algorithm": dqn, "replay": replay}


def serial(make_env: Any) -> list[Cage]:
    return [SerialCage(make_env, {"kind": "cloud"}, n_envs=B, seed=SEED)]


def in_workers(make_env: Any) -> list[Cage]:
    seeds, settings = spawn_seeds(SEED, B), {"kind": "cloud"}
    return [
        ProcessCage(make_env, settings, n_envs=2, seed=seeds[:2]),
        ProcessCage(make_env, settings, n_envs=2, seed=seeds[2:]),
    ]


def train(
    kind: str,
    *,
    storage: str = "local",
    make_env: Any = Shapes,
    make_cages: Any = serial,
    folder: Path | None = None,
    cut_after: float = math.inf,
    saves_envs: bool = False,
) -> tuple[list[Any], dict[str, Any]]:
    """Train, from the newest checkpoint on if there is a folder; return logs and weights."""
    torch.manual_seed(SEED)
    with ExitStack() as stack:
        example = build_example(make_env, env_kwargs={"kind": "cloud"}, storage=storage)
        samples, parts = make_parts(kind, example)
        replay = parts.get("replay")
        cages = [stack.enter_context(cage) for cage in make_cages(make_env)]
        has_state = "initial_rnn_state" in samples
        sampler: Any = RecurrentSampler if has_state else BasicSampler
        sampler = sampler(cages, parts["agent"], samples, replay=replay)
        for part in (samples, sampler, *([replay] if replay else [])):
            stack.callback(part.close)
        metrics, options = Numbers(cut_after), {}
        if folder is not None:
            checkpoints = Checkpoints(folder, sampler, seed=SEED, saves_envs=saves_envs, **parts)
            options = {"after_batch": [every(2 * T * B, checkpoints)]}
        transforms = [EstimateAdvantage(), NormalizeAdvantage()] if "ppo" in kind else []
        runner = RLRunner(
            sampler,
            parts["algorithm"],
            metrics,
            n_steps=T * B * N_BATCHES,
            log_every=T * B,
            transforms=transforms,
            **options,
        )
        with suppress(CutOffError):
            runner.run(resume=None if folder is None else checkpoints)
        weights = {name: x.clone() for name, x in parts["agent"].model.state_dict().items()}
        return metrics.logs, weights


def padded(kind: str = "cloud") -> PaddedClouds:
    return PaddedClouds()


@each_kind
def test_what_is_learned_is_what_padded_rows_teach(kind: str) -> None:
    """The same clouds, at one length: sums are rounded in another order, and nothing else."""
    logs, weights = train(kind)
    expected, others = train(kind, make_env=padded)
    assert len(logs) == N_BATCHES
    losses = [{name: x for name, x in log.items() if "loss" in name} for _, log in logs]
    assert sum(map(len, losses)) >= N_BATCHES
    for (step, log), (other_step, other) in zip(logs, expected, strict=True):
        assert step == other_step
        assert log.keys() == other.keys()
        for name, number in log.items():
            assert number == pytest.approx(other[name], rel=2e-3, abs=2e-4), name
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=2e-3, atol=2e-4)


@each_kind_briefly
@each_schedule
def test_learning_is_the_same_on_a_device(kind: str, schedule: str, seed: int) -> None:
    expected, weights = train(kind)
    with simulated_cuda(schedule, seed):
        logs, found = train(kind, storage="device")
    assert logs == expected
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("kind", all_but_first(["ppo", "sequences by priority"]))
def test_learning_is_the_same_with_workers(kind: str) -> None:
    (expected, weights), (logs, found) = (
        train(kind),
        train(kind, make_cages=in_workers, storage="shared"),
    )
    assert [step for step, _ in logs] == [step for step, _ in expected]
    for (_, log), (_, other) in zip(logs, expected, strict=True):
        assert log == pytest.approx(other, rel=1e-12)  # means of episodes in another order
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


@each_kind
@pytest.mark.parametrize("saves_envs", all_but_first([False, True]))
def test_a_resumed_run_ends_as_one_that_was_left_alone(
    kind: str, saves_envs: bool, tmp_path: Path
) -> None:
    options = {"saves_envs": saves_envs}
    expected, weights = train(kind, folder=tmp_path / "alone", **options)
    begun, _ = train(kind, folder=tmp_path / "cut", cut_after=3 * T * B, **options)
    rest, found = train(kind, folder=tmp_path / "cut", **options)
    assert len(begun) == 3
    assert begun[:2] + rest == expected
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


# Parts


def test_rows_that_are_left_out_are_cleared_and_others_stay() -> None:
    values = torch.tensor([[1.0], [4.0], [torch.nan], [2.0], [3.0]])
    clouds = Jagged(values, torch.tensor([0, 2, 4, 4, 5]), None, (2, 2))
    is_left_out = torch.tensor([[False, True], [True, False]])
    cleared = clear_rows(ArrayDict({"cloud": clouds, "kind": clouds}), is_left_out)["cloud"]
    assert cleared.batch_shape == (2, 2)
    assert cleared.values.flatten().tolist() == [1, 4, 0, 0, 3]
    assert cleared.counts.tolist() == [2, 2, 0, 1]


def test_nan_in_a_cloud_is_found_and_what_lies_behind_its_points_is_not() -> None:
    array = JaggedArray((2, 3), "float32", feature_shape=(2,), capacity=4)
    array[...] = np.zeros((2, 2))
    array.memory_parts["values"][:, :, 2:] = np.nan  # behind all clouds
    flags = {name: Array((2, 3), bool) for name in ("terminated", "truncated")}
    batch = ArrayDict({"observation": array, **flags})
    assert find_not_finite(batch) is None
    array[1, 2] = [[0, 0], [0, 0], [0, np.inf]]
    found = "observation is inf in row t = 1 of environment 2, element (2, 1)"
    assert find_not_finite(batch) == found


@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_a_cloud_with_nan_ends_the_batch_and_names_it(kind: str) -> None:
    wrong = np.full((3, 3), np.nan, np.float32)
    settings = {"kind": "cloud", "wrong": wrong, "at": 2, "ends": False}

    def make_cages(make_env: Any) -> list[Cage]:
        return [SerialCage(make_env, settings, n_envs=B, seed=SEED)]

    with pytest.raises(ValueError, match=r"observation is nan in row t = 2 of environment 0"):
        train(kind, make_cages=make_cages)


def test_normalization_of_observations_leaves_clouds_alone_and_says_so() -> None:
    clouds = Jagged.of([np.ones((2, 3)), np.zeros((1, 3))], "float32").to_torch()
    rows = ArrayDict({"cloud": clouds, "speed": torch.ones(2, 1)})
    layer = NormalizeObservations(rows)
    assert layer(rows)["cloud"] is clouds
    with pytest.raises(TypeError, match=r"observation.cloud: its elements have different lengths"):
        NormalizeObservations(rows, leaves=["cloud"])
    with pytest.raises(TypeError, match="observation: its elements have different lengths"):
        NormalizeObservations(clouds)


def test_an_agent_acts_on_clouds_in_inference_mode_and_learns_with_gradients() -> None:
    example = build_example(Shapes, env_kwargs={"kind": "cloud"}, storage="local")
    agent = CategoricalPgAgent(CloudActorCritic(), Categorical(2), example["observation"])
    clouds = JaggedArray((3,), "float32", feature_shape=(3,), capacity=MOST)
    clouds[...] = [np.ones((2, 3)), np.zeros((0, 3)), np.ones((MOST, 3))]
    action, agent_info = agent.step(clouds)
    assert action.is_inference()
    assert agent.value(clouds).tolist() == agent_info["value"].tolist()
    evaluation = agent.evaluate(clouds.to_torch().packed(), action.clone())
    evaluation.log_prob.sum().backward()
    assert all(weight.grad is not None for weight in agent.model.parameters())
