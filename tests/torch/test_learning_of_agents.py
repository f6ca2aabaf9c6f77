"""Agents that come and go learn by sampler, transforms and PPO: each from its own rewards."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from parllel.cages import ParallelAgents
from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import RLRunner
from parllel.samplers import BasicSampler
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.agents import IndependentPgAgents, PgAgent
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic, Mlp
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage, NormalizeRewards
from schedules import each_schedule

NAMES = ("left", "right", "late")
N_INPUTS = 2 * len(NAMES)
CUES = np.eye(N_INPUTS, dtype=np.float32).reshape(len(NAMES), 2, N_INPUTS)


class Signals:
    """Each agent sees a cue of its own: two are paid for showing it, "right" for the opposite.

    An agent dies with a chance of 0.1 in each step, by an end or by a cut; "late" comes with the
    third step. All is over after 8 steps. A right action pays 1, a wrong one -1, and "left" is
    paid ten times as much.
    """

    metadata: dict[str, Any] = {"name": "signals"}  # noqa: RUF012  # as PettingZoo's
    render_mode = None
    possible_agents = NAMES

    def __init__(self) -> None:
        self.agents: list[str] = []
        self.np_random = np.random.default_rng(0)
        self.cues: dict[str, int] = {}
        self.n_steps = 0

    def observation_space(self, agent: str) -> spaces.Box:
        return spaces.Box(0, 1, (N_INPUTS,), np.float32)

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self.n_steps, self.agents = 0, ["left", "right"]
        return self._observe(self.agents), {}

    def _observe(self, names: list[str]) -> dict[str, Any]:
        self.cues = {name: int(self.np_random.integers(2)) for name in names}
        return {name: CUES[NAMES.index(name), cue] for name, cue in self.cues.items()}

    def step(self, actions: Mapping[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
        self.n_steps += 1
        acted, cues = self.agents, self.cues
        reward = {
            name: (1.0 if (int(actions[name]) == cues[name]) != (name == "right") else -1.0)
            * (10 if name == "left" else 1)
            for name in acted
        }
        dies = {name: self.np_random.random() < 0.1 for name in acted}
        cut = {name: bool(self.np_random.random() < 0.5) or self.n_steps == 8 for name in acted}
        over = {name: dies[name] or self.n_steps == 8 for name in acted}
        self.agents = [name for name in acted if not over[name]]
        shown = [*acted, "late"] if self.n_steps == 2 and self.agents else acted
        self.agents += shown[len(acted) :]
        terminated = {name: over[name] and not cut[name] for name in acted}
        truncated = {name: over[name] and cut[name] for name in acted}
        return self._observe(shown), reward, terminated, truncated, {}

    def close(self) -> None: ...


def make_agents(is_axis: bool, kind: str, device: Any) -> IndependentPgAgents:
    torch.manual_seed(1)

    def make() -> PgAgent:
        model = ActorCritic(Mlp(N_INPUTS, [16]), 2).to(device)
        return PgAgent(model, Categorical(2), torch.zeros(1, N_INPUTS, device=device))

    agents = [make()] * 3 if kind == "shared" else [make() for _ in NAMES]
    critic = Critic().to(device) if kind == "critic" else None
    return IndependentPgAgents(
        agents if is_axis else dict(zip(NAMES, agents, strict=True)), critic=critic
    )


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Mlp(3 * N_INPUTS, [16]), nn.Linear(16, 3))

    def forward(self, observation: Any) -> torch.Tensor:
        if not isinstance(observation, torch.Tensor):
            observation = torch.stack([observation[name] for name in NAMES], 1)
        return self.layers(observation.flatten(1))


def train(
    form: str, kind: str, *, n_batches: int, storage: str = "local"
) -> tuple[IndependentPgAgents, list[Mapping[str, float]]]:
    def make_env() -> ParallelAgents:
        return ParallelAgents(Signals(), form)

    cages = build_cages(make_env, 8, seed=0, n_workers="serial")
    example = build_example(make_env, storage=storage)
    (_, first), *_ = example["reward"].walk() if form != "axis" else [((), example["reward"])]
    agents = make_agents(form == "axis", kind, first.to_torch().device)
    samples = build_sample_tree(example, agents, batch_shape=(16, 8))
    sampler = BasicSampler(cages, agents, samples)
    optimizer = torch.optim.Adam(agents.model.parameters(), lr=0.02)
    ppo = PPO(agents, optimizer, PPOSettings(), rng=np.random.default_rng(0))
    transforms = [
        NormalizeRewards(discount=0.5),
        EstimateAdvantage(discount=0.5, gae_lambda=0.9),
        NormalizeAdvantage(),
    ]
    learned: list[Mapping[str, float]] = []
    runner = RLRunner(
        sampler,
        ppo,
        Metrics(),
        n_steps=n_batches * 16 * 8,
        transforms=transforms,
        after_batch=[lambda runner: learned.append(runner.learned)],
    )
    runner.run()
    sampler.close()
    samples.close()
    for cage in cages:
        cage.close()
    return agents, learned


def share_of_right_actions(agents: IndependentPgAgents, is_axis: bool) -> dict[str, float]:
    """Return how often each agent is right, of both cues."""
    shares = {}
    observation: Any = torch.from_numpy(CUES.swapaxes(0, 1).copy())
    if not is_axis:
        observation = {name: observation[:, i] for i, name in enumerate(NAMES)}
    action, _ = agents.step(observation, deterministic=True)
    for i, name in enumerate(NAMES):
        own = action[:, i] if is_axis else action[name]
        shares[name] = float(np.mean((own.numpy() == [0, 1]) != (name == "right")))
    return shares


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("axis", "shared"),
        ("dictionary", "own"),
        pytest.param("axis", "critic", marks=pytest.mark.long),
        pytest.param("dictionary", "critic", marks=pytest.mark.long),
        pytest.param("axis", "own", marks=pytest.mark.long),
        pytest.param("dictionary", "shared", marks=pytest.mark.long),
    ],
)
def test_each_agent_learns_from_its_own_rewards(form: str, kind: str) -> None:
    agents, learned = train(form, kind, n_batches=14)
    assert share_of_right_actions(agents, form == "axis") == dict.fromkeys(NAMES, 1.0)
    assert learned[-1]["entropy"] < 0.5 * learned[0]["entropy"]


@each_schedule
@pytest.mark.parametrize("form", ["axis", "dictionary"])
def test_training_on_the_device_has_the_hosts_losses(form: str, schedule: str, seed: int) -> None:
    _, expected = train(form, "critic", n_batches=2)
    with simulated_cuda(schedule, seed=seed):
        _, found = train(form, "critic", n_batches=2, storage="device")
    assert found == expected


def test_both_forms_train_with_equal_losses() -> None:
    """Bit for bit: agents live in rows of their own, so that their moments are found one by one."""
    found = [train(form, "shared", n_batches=2)[1] for form in ("axis", "dictionary")]
    assert found[0] == found[1]


def make_archers() -> Any:
    from pettingzoo.butterfly import knights_archers_zombies_v11

    return knights_archers_zombies_v11.parallel_env(
        max_cycles=90, spawn_delay=2, max_zombies=20, line_death=True
    )


@pytest.mark.long
@pytest.mark.parametrize("make_env", [make_archers])
def test_knights_and_archers_who_die_are_learned_from(make_env: Callable[[], Any]) -> None:
    pytest.importorskip("pettingzoo.butterfly.knights_archers_zombies_v11")
    cages = build_cages(make_env, 2, seed=0, n_workers="serial")
    example = build_example(make_env, storage="local")
    _, n_agents, *shape = example["observation"].shape
    n_actions = int(cages[0].action_space.nvec[0])
    model = ActorCritic(Mlp(int(np.prod(shape)), [32]), n_actions)
    agent = PgAgent(model, Categorical(n_actions), example["observation"].to_torch()[:, 0])
    agents = IndependentPgAgents([agent] * n_agents)
    samples = build_sample_tree(example, agents, batch_shape=(64, 2))
    sampler = BasicSampler(cages, agents, samples)
    ppo = PPO(
        agents,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        PPOSettings(),
        rng=np.random.default_rng(0),
    )
    n_dead = 0
    for _ in range(4):
        batch, _ = sampler.collect_batch()
        n_dead += int((~batch["valid"].to_ndarray()).sum())
        numbers = ppo.optimize(NormalizeAdvantage()(EstimateAdvantage()(batch)))
        assert all(np.isfinite(number) for number in numbers.values())
    assert n_dead > 0
    sampler.close()
    samples.close()
    for cage in cages:
        cage.close()
