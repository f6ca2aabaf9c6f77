"""Runs of agents with a memory: cut off and resumed, they end as those that were left alone."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from example_runs import CutOffError, Numbers
from parllel import ArrayDict
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from parllel.runners import Checkpoints, RLRunner, every
from parllel.samplers import RecurrentSampler
from parllel.schedules import linear
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.toy_envs import Walk
from parllel.torch.agents import PreviousInputs, RecurrentPgAgent, RecurrentQAgent
from parllel.torch.algos import DQN, PPO, DQNSettings, PPOSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic, Lstm, Mlp, QNetwork, RecurrentNetwork
from parllel.transforms import EstimateAdvantage

T, B, N_BATCHES, SEED = 6, 3, 8, 5


def make_model(head: nn.Module, previous: PreviousInputs) -> Any:
    return RecurrentNetwork(Mlp(3, [6]), Lstm(6 + previous.n_features, 8), head)


def make_ppo(example: ArrayDict) -> tuple[ArrayDict, dict[str, Any]]:
    previous = PreviousInputs(Walk.action_space)
    model = make_model(ActorCritic(nn.Identity(), n_logits=4, n_features=8), previous)
    agent = RecurrentPgAgent(model, Categorical(4), example["observation"], previous=previous)
    samples = build_sample_tree(example, agent, batch_shape=(T, B))
    optimizer = torch.optim.Adam(model.parameters())
    settings = PPOSettings(n_epochs=2, n_minibatches=3, learning_rate=linear(0.01, 0.0))
    ppo = PPO(agent, optimizer, settings, rng=np.random.default_rng(SEED))
    return samples, {"agent": agent, "algorithm": ppo}


def make_dqn(example: ArrayDict, kind: Any) -> tuple[ArrayDict, dict[str, Any]]:
    previous = PreviousInputs(Walk.action_space)
    model = make_model(QNetwork(nn.Identity(), 4, n_features=8), previous)
    epsilon = linear(1.0, 0.1)
    agent = RecurrentQAgent(
        model, example["observation"], epsilon, previous=previous, keeps_state=True
    )
    samples = build_sample_tree(example, agent, batch_shape=(T, B), full_size=4 * T)
    rng = np.random.default_rng(SEED)
    replay = kind(samples, rng=rng, length=4, burn_in=2, episode_end="pad")
    optimizer = torch.optim.Adam(model.parameters())
    settings = DQNSettings(
        batch_size=8,
        n_updates=2,
        target_period=3,
        n_steps=2,
        discount=0.9,
        learning_rate=linear(0.01, 0.0),
    )
    dqn = DQN(agent, replay, optimizer, settings)
    return samples, {"agent": agent, "algorithm": dqn, "replay": replay}


def train(
    kind: Any, folder: Path, *, saves_envs: bool, cut_after: float = math.inf
) -> tuple[list[Any], dict[str, Any]]:
    """Train from the newest checkpoint on; return what was logged, and what there is at the end.

    Args:
        kind: class of the replay buffer from which DQN learns. None trains PPO instead.
        folder: where checkpoints are saved, after every third batch.
        saves_envs: as for `Checkpoints`.
        cut_after: number of steps; the run is cut off when a later one is logged.
    """
    torch.manual_seed(SEED)
    cages = build_cages(Walk, B, n_workers="serial", seed=SEED)
    example = build_example(Walk, storage="local")
    samples, parts = make_ppo(example) if kind is None else make_dqn(example, kind)
    replay = parts.get("replay")
    sampler = RecurrentSampler(cages, parts["agent"], samples, replay=replay)
    checkpoints = Checkpoints(folder, sampler, seed=SEED, saves_envs=saves_envs, **parts)
    metrics = Numbers(cut_after)
    runner = RLRunner(
        sampler,
        parts["algorithm"],
        metrics,
        n_steps=T * B * N_BATCHES,
        log_every=T * B,
        transforms=[EstimateAdvantage()] if kind is None else [],
        after_batch=[every(3 * T * B, checkpoints)],
    )
    with suppress(CutOffError):
        runner.run(resume=checkpoints)
    model: Any = parts["agent"].model
    found: dict[str, Any] = {"weights": model.state_dict(), "state": parts["agent"].rnn_state}
    if replay is not None:
        found["windows"] = {path: leaf.clone() for path, leaf in leaves(replay.sample(16)).items()}
    return metrics.logs, found


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
        return
    assert found.keys() == expected.keys()
    for name, branch in expected.items():
        assert_equal(found[name], branch)


@pytest.mark.parametrize("saves_envs", [False, True])
@pytest.mark.parametrize(
    "kind",
    [None, SequenceReplayBuffer, PrioritizedSequenceReplayBuffer],
    ids=["ppo", "dqn", "dqn by priority"],
)
def test_a_resumed_run_ends_as_one_that_was_left_alone(
    kind: Any, saves_envs: bool, tmp_path: Path
) -> None:
    logs, expected = train(kind, tmp_path / "alone", saves_envs=saves_envs)
    begun, _ = train(kind, tmp_path / "cut", saves_envs=saves_envs, cut_after=4 * T * B)
    assert [step for step, _ in begun] == [T * B * (1 + number) for number in range(4)]
    rest, found = train(kind, tmp_path / "cut", saves_envs=saves_envs)
    assert begun[:3] + rest == logs  # the batch after the checkpoint is collected again
    assert len(rest) == N_BATCHES - 3
    assert_equal(found, expected)
    if kind is not None:
        assert (found["windows"]["initial_rnn_state.hidden"] != 0).any()
