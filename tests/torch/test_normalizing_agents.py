"""Agents whose model normalizes observations, in whole runs: acting, learning, saving, resuming."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from long_run import all_but_first
from parllel import ArrayDict
from parllel.cages import SerialCage
from parllel.metrics import Metrics
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import Minibatches, PrioritizedSequenceReplayBuffer, ReplayBuffer
from parllel.runners import Checkpoints, Evaluator, RLRunner, every
from parllel.samplers import BasicSampler, EvalSampler, RecurrentSampler
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Walk
from parllel.torch.agents import (
    CategoricalPgAgent,
    PreviousInputs,
    QAgent,
    RecurrentPgAgent,
    RecurrentQAgent,
)
from parllel.torch.algos import DQN, PPO, DQNSettings, PPOSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import (
    ActorCritic,
    Lstm,
    Mlp,
    NormalizeObservations,
    QNetwork,
    RecurrentNetwork,
    SoftActorCritic,
    TwinMlp,
)
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage, NormalizeRewards
from schedules import each_schedule

T, B = 8, 3


def make_run(kind: str, storage: str = "local") -> tuple[Any, BasicSampler, Any, dict[str, Any]]:
    """Return a cage, a sampler of it, an algorithm, and the parts of a run."""
    torch.manual_seed(0)
    cage = SerialCage(Walk, n_envs=B, seed=1)
    example = build_example(Walk, storage=storage)
    normalize = NormalizeObservations(example["observation"])
    if kind.startswith("recurrent"):
        return make_recurrent_run(kind, cage, example, normalize)
    if kind == "ppo":
        model: nn.Module = nn.Sequential(normalize, TwinMlp(3, 4, (8,)))
        agent: Any = CategoricalPgAgent(model, Categorical(4), example["observation"])
        samples = build_sample_tree(example, agent, batch_shape=(T, B))
        sampler = BasicSampler([cage], agent, samples)
        settings = PPOSettings(n_epochs=2, n_minibatches=2)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        algorithm: Any = PPO(agent, optimizer, settings, rng=np.random.default_rng(0))
        return cage, sampler, algorithm, {"agent": agent, "algorithm": algorithm}
    model = nn.Sequential(normalize, QNetwork(Mlp(3, (8,)), 4))
    agent = QAgent(model, example["observation"], epsilon=0.3)
    samples = build_sample_tree(example, agent, batch_shape=(T, B), full_size=10 * T)
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    sampler = BasicSampler([cage], agent, samples, replay=replay)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    settings = DQNSettings(batch_size=8, n_updates=2, target_period=3)
    algorithm = DQN(agent, replay, optimizer, settings)
    return cage, sampler, algorithm, {"agent": agent, "algorithm": algorithm, "replay": replay}


def make_recurrent_run(
    kind: str, cage: SerialCage, example: ArrayDict, normalize: NormalizeObservations
) -> tuple[Any, BasicSampler, Any, dict[str, Any]]:
    """Return what `make_run` does, of an agent with a state and previous inputs."""
    encoder, previous = nn.Sequential(normalize, Mlp(3, (6,))), PreviousInputs(Walk.action_space)
    core = Lstm(6 + previous.n_features, 8)
    first = example["observation"]
    if kind == "recurrent ppo":
        head: nn.Module = ActorCritic(nn.Identity(), 4, n_features=8)
        model = RecurrentNetwork(encoder, core, head, n_features=6)
        agent: Any = RecurrentPgAgent(model, Categorical(4), first, previous=previous)
        samples = build_sample_tree(example, agent, batch_shape=(T, B))
        sampler = RecurrentSampler([cage], agent, samples)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        ppo = PPO(agent, optimizer, PPOSettings(n_minibatches=3), rng=np.random.default_rng(0))
        return cage, sampler, ppo, {"agent": agent, "algorithm": ppo}
    head = QNetwork(nn.Identity(), 4, n_features=8)
    model = RecurrentNetwork(encoder, core, head, n_features=6)
    agent = RecurrentQAgent(model, first, 0.3, previous=previous, keeps_state=True)
    samples = build_sample_tree(example, agent, batch_shape=(T, B), full_size=5 * T)
    replay = PrioritizedSequenceReplayBuffer(
        samples, rng=np.random.default_rng(0), length=5, burn_in=2, episode_end="cross"
    )
    sampler = RecurrentSampler([cage], agent, samples, replay=replay)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    settings = DQNSettings(batch_size=8, n_updates=2, target_period=3, n_steps=3, discount=0.9)
    dqn = DQN(agent, replay, optimizer, settings)
    return cage, sampler, dqn, {"agent": agent, "algorithm": dqn, "replay": replay}


def make_transforms(kind: str) -> list[Any]:
    if kind.endswith("dqn"):
        return []
    return [NormalizeRewards(), EstimateAdvantage(), NormalizeAdvantage()]


def run(
    kind: str,
    folder: Path,
    n_batches: int,
    *,
    storage: str = "local",
    resume: bool = False,
    saves_envs: bool = True,
    evaluates: bool = True,
) -> tuple[list[Any], dict[str, Any]]:
    """Return what was learned from each batch, and the state of the model at the end."""
    cage, sampler, algorithm, parts = make_run(kind, storage)
    learned: list[Any] = []
    checkpoints = Checkpoints(folder, sampler, seed=0, saves_envs=saves_envs, **parts)
    eval_cage = SerialCage(Walk, n_envs=2)
    evaluation = Evaluator(
        EvalSampler([eval_cage], sampler.agent, n_episodes=2, seed=1, storage=storage)
    )
    hooks: list[Any] = [lambda run: learned.append(dict(run.learned))]
    hooks += [evaluation] if evaluates else []
    runner = RLRunner(
        sampler,
        algorithm,
        Metrics(),
        n_steps=n_batches * T * B,
        transforms=make_transforms(kind),
        after_batch=[*hooks, every(2 * T * B, checkpoints)],
    )
    runner.run(resume=checkpoints if resume else None)
    sampler.close()
    cage.close()
    eval_cage.close()
    state = parts["agent"].model.state_dict()
    return learned, {name: value.tolist() for name, value in state.items()}


each_kind = pytest.mark.parametrize("kind", ["ppo", "dqn"])


def rows_of(batch: ArrayDict) -> Any:
    (rows,) = Minibatches(1, np.random.default_rng(0)).of(batch)
    return rows


def test_a_policy_that_has_not_changed_has_a_ratio_of_1() -> None:
    """Though moments have changed since the batch before: those that acted are those that learn."""
    cage, sampler, _, parts = make_run("ppo")
    agent = parts["agent"]
    with cage:
        for _ in range(3):
            batch, _ = sampler.collect_batch()
            rows = rows_of(batch)
            with torch.no_grad():
                found = agent.evaluate(rows["observation"], rows["action"]).log_prob
            assert torch.allclose(found, rows["agent_info"]["log_prob"], atol=1e-6)
            before = agent.model[0].get_buffer("mean").clone()
            agent.begin_batch()  # what comes with the next batch would make another ratio
            assert not torch.equal(agent.model[0].get_buffer("mean"), before)
            with torch.no_grad():
                later = agent.evaluate(rows["observation"], rows["action"]).log_prob
            assert not torch.allclose(later, rows["agent_info"]["log_prob"], atol=1e-5)


def test_the_first_minibatch_clips_nothing() -> None:
    cage, sampler, _, parts = make_run("ppo")
    agent = parts["agent"]
    settings = PPOSettings(n_epochs=1, n_minibatches=1)
    ppo = PPO(
        agent,
        torch.optim.Adam(agent.model.parameters()),
        settings,
        rng=np.random.default_rng(0),
    )
    with cage:
        for _ in range(3):
            batch, _ = sampler.collect_batch()
            learned = ppo.optimize(EstimateAdvantage()(batch))
            assert learned["clip_fraction"] == 0
            assert abs(learned["kl"]) < 1e-6


@each_kind
def test_what_was_seen_is_what_environments_gave(kind: str, tmp_path: Path) -> None:
    """Tree and ring hold it as it was, and so do minibatches; evaluations add nothing."""
    cage, sampler, _, parts = make_run(kind)
    normalize = parts["agent"].model[0]
    seen: list[np.ndarray] = []
    with cage:
        for _ in range(3):
            batch, _ = sampler.collect_batch()
            seen.append(batch["observation"].to_ndarray().reshape(-1, 3).astype(np.float64))
            assert normalize.moments().count.item() >= len(np.concatenate(seen))
            if kind == "dqn":
                drawn = sampler.replay.sample(16)["observation"].numpy().astype(np.float64)
                everything = {row.tobytes() for row in np.concatenate(seen)}
                assert {row.tobytes() for row in drawn} <= everything
    _, evaluated = run(kind, tmp_path / "a", 2)
    _, alone = run(kind, tmp_path / "b", 2, evaluates=False)
    assert evaluated == alone


@each_kind
def test_a_saved_agent_acts_alike(kind: str, tmp_path: Path) -> None:
    cage, sampler, _, parts = make_run(kind)
    _, _, _, others = make_run(kind)
    agent, other = parts["agent"], others["agent"]
    with cage:
        for _ in range(3):
            batch, _ = sampler.collect_batch()
        rows = batch["observation"][2]
        agent.save(tmp_path / "model.safetensors")
        expected, _ = agent.step(rows, deterministic=True)
        fresh = other.model(rows.to_torch())
        other.load(tmp_path / "model.safetensors")
        found, _ = other.step(rows, deterministic=True)
        assert torch.equal(found, expected)
        with torch.no_grad():
            results = [each.model(rows.to_torch()) for each in (agent, other)]
        if kind == "dqn":
            assert torch.equal(*results)
            assert not torch.equal(results[0], fresh)
        else:
            assert torch.equal(results[0].value, results[1].value)
            assert not torch.equal(results[0].value, fresh.value)
        assert agent.model[0].moments().count == other.model[0].moments().count


@pytest.mark.parametrize(
    ("kind", "saves_envs"),
    all_but_first(
        [
            ("recurrent ppo", True),
            ("recurrent dqn", True),
            ("ppo", True),
            ("dqn", False),
            ("ppo", False),
            ("dqn", True),
            ("recurrent dqn", False),
        ],
        n_short=3,
    ),
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    kind: str, saves_envs: bool, tmp_path: Path
) -> None:
    whole, state = run(kind, tmp_path / "whole", 6, saves_envs=saves_envs)
    first, _ = run(kind, tmp_path / "cut", 2, saves_envs=saves_envs)
    rest, resumed = run(kind, tmp_path / "cut", 6, saves_envs=saves_envs, resume=True)
    assert first + rest == whole
    assert resumed == state


@each_kind
@each_schedule
def test_a_run_gives_the_same_numbers_in_memory_of_a_gpu(
    kind: str, schedule: str, seed: int, tmp_path: Path
) -> None:
    expected = run(kind, tmp_path / "host", 4, saves_envs=False)
    with simulated_cuda(schedule, seed):
        found = run(kind, tmp_path / "device", 4, saves_envs=False, storage="device")
    assert found == expected


def test_a_target_network_normalizes_as_it_was_when_it_was_copied() -> None:
    cage, sampler, algorithm, parts = make_run("dqn")
    own = parts["agent"].model[0]
    with cage:
        for _ in range(4):
            batch, _ = sampler.collect_batch()
            algorithm.optimize(batch)
    target = algorithm.state_dict()["target"]
    assert target["0.seen_count"] > 0
    assert target["0.seen_count"] < own.moments().count


def test_an_agent_without_such_a_part_observes_nothing() -> None:
    example = torch.zeros(1, 3)
    agent = QAgent(nn.Linear(3, 4), example, epsilon=0.1)
    assert not agent.observes
    agent = QAgent(nn.Sequential(NormalizeObservations(example), nn.Linear(3, 4)), example, 0.1)
    assert agent.observes
    assert not QAgent(lambda rows: rows, example, epsilon=0.1).observes


def test_an_encoder_that_normalizes_serves_policy_and_critics() -> None:
    rows = torch.tensor([[1.0, 2, 3], [3, 2, 1]])
    encoder = NormalizeObservations(rows)
    model = SoftActorCritic(3, n_actions=1, sizes=(4,), encoder=encoder)
    encoder.observe(rows.numpy())
    encoder.begin_batch()
    assert torch.equal(model.encode(rows), encoder(rows))
    assert torch.equal(model.encode(rows), torch.tensor([[-1.0, 0, 1], [1, 0, -1]]))


@pytest.mark.long
def test_a_compiled_model_observes_as_the_plain_one() -> None:
    example = torch.zeros(1, 3)
    agent = QAgent(nn.Sequential(NormalizeObservations(example), nn.Linear(3, 4)), example, 0.1)
    compiled = QAgent(torch.compile(agent.model, backend="eager"), example, epsilon=0.1)
    assert compiled.observes
    rows = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
    compiled.observe(rows)  # in the module that was compiled
    before = compiled.value(rows)
    compiled.begin_batch()
    assert not torch.equal(compiled.value(rows), before)
    assert torch.equal(compiled.value(rows), agent.value(rows))
