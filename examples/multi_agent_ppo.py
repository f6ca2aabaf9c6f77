# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]", "mpe2>=1.1"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train PPO for a team: three agents spread out over three landmarks (simple_spread of mpe2)."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from mpe2 import simple_spread_v3
from torch import nn

from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import Checkpoints, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import BasicSampler
from parllel.schedules import linear
from parllel.torch.agents import IndependentPgAgents, PgAgent
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic, Mlp
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage, NormalizeRewards

N_ENVS, T = 16, 50  # environments, and steps of each in a batch: two episodes
DISCOUNT, GAE_LAMBDA = 0.95, 0.95
SETTINGS = PPOSettings(n_epochs=6, n_minibatches=4, learning_rate=linear(1e-3, 1e-4))
CHECKPOINT_EVERY = 20_000


@dataclass(frozen=True)
class Config(RunConfig):
    """Train PPO on simple_spread_v3.

    The score is the mean over agents of their returns, of the last 300 episodes: each agent is paid
    for the distances of all landmarks to the nearest agent, less its own collisions. Random agents
    have -25.5 in an episode of 25 steps.

    Args:
        shares_model: whether one model acts for all agents; else each has its own.
        sees_all: whether values come of a critic that sees the observations of all agents.
    """

    steps: int = 120_000
    shares_model: bool = True
    sees_all: bool = False


def make_env() -> Any:
    return simple_spread_v3.parallel_env(N=3, max_cycles=25)


class Critic(nn.Module):
    """A value for each agent, of the observations of all: [B, N, features] to [B, N]."""

    def __init__(self, n_agents: int, n_inputs: int) -> None:
        super().__init__()
        encoder = Mlp(n_agents * n_inputs, [128, 128])
        self.layers = nn.Sequential(nn.Flatten(), encoder, nn.Linear(128, n_agents))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.layers(observation)


def make_agents(config: Config, observation: torch.Tensor, n_actions: int) -> IndependentPgAgents:
    """Return agents for observations [B, N, features], each with one of n actions."""
    _, n_agents, n_inputs = observation.shape
    agents = []
    for _ in range(1 if config.shares_model else n_agents):
        model = ActorCritic(Mlp(n_inputs), n_actions).to(observation.device)
        agents.append(PgAgent(model, Categorical(n_actions), observation[:, 0]))
    agents = agents * n_agents if config.shares_model else agents
    critic = Critic(n_agents, n_inputs).to(observation.device) if config.sees_all else None
    return IndependentPgAgents(agents, critic=critic)


def train(config: Config, run: RunFolder, metrics: Metrics) -> tuple[IndependentPgAgents, float]:
    """Train; return the agents, and the mean return of the last 300 episodes."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)

    cages = build_cages(make_env, N_ENVS, seed=config.seed, n_workers="serial")
    example = build_example(make_env, storage=config.storage)
    n_actions = int(cages[0].action_space.nvec[0])  # of each agent
    agents = make_agents(config, example["observation"].to_torch(), n_actions)
    samples = build_sample_tree(example, agents, batch_shape=(T, N_ENVS))
    sampler = BasicSampler(cages, agents, samples)

    # Agents of one team are paid by one measure: their rewards are not scaled one by one.
    transforms = [
        NormalizeRewards(discount=DISCOUNT, per_agent=False),
        EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA),
        NormalizeAdvantage(per_agent=False),
    ]
    optimizer = torch.optim.Adam(agents.model.parameters(), eps=1e-5)
    algorithm = PPO(agents, optimizer, SETTINGS, rng=np.random.default_rng(config.seed))

    parts = {"agent": agents, "algorithm": algorithm}
    checkpoints = Checkpoints(run.checkpoints, sampler, seed=config.seed, **parts)
    runner = RLRunner(
        sampler,
        algorithm,
        metrics,
        n_steps=config.steps,
        window=300,
        transforms=transforms,
        after_batch=[every(CHECKPOINT_EVERY, checkpoints)],
    )
    with ExitStack() as stack:  # closes environments and memory, also after an error
        stack.callback(samples.close)
        stack.callback(sampler.close)
        for cage in cages:
            stack.enter_context(cage)
        summary = runner.run(resume=checkpoints if config.resume else None)
    agents.save(run.model)
    return agents, summary.mean_return


def main(config: Config) -> None:
    run = RunFolder(config, name="multi_agent_ppo")
    with run.open_metrics(config.steps) as metrics:
        _, score = train(config, run, metrics)
    print(f"learning curve: {run.curve}")
    print(f"score {score:.3f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
