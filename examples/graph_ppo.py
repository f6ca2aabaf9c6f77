# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train PPO on graphs: walk to the goal through halls of a maze that is new in each episode."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces
from torch import nn

from parllel import Jagged
from parllel.arrays import batch_graphs
from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import Checkpoints, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import BasicSampler
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical, DistParams
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage

N_ENVS, T, DISCOUNT = 16, 64, 0.97  # environments, and steps of each in a batch
# Without a limit, one batch can undo a policy that has long been right: minibatch by minibatch it
# went on from a KL divergence of 0.02 to one of 1 (seed 2, at 40,000 steps).
SETTINGS = PPOSettings(4, 4, entropy_coefficient=0.01, learning_rate=1e-3, kl_limit=0.03)
CHECKPOINT_EVERY = 50_000
FEWEST, MOST, N_DOORS = 16, 32, 3  # halls of a maze, and doors of a hall
N_STEPS, N_ROUNDS = 20, 6  # of an episode; and of messages between halls


@dataclass(frozen=True)
class Config(RunConfig):
    """Train PPO with messages between nodes to find ways through graphs."""

    steps: int = 60_000


class Maze(gym.Env):
    """Halls with three doors each, which lead to other halls, and back from there.

    Nodes are halls: the agent's own is (1, 0), the goal (0, 1), all others (0, 0). Edges are doors
    with numbers, 0 to 2, which are the actions. Where a door leads is known by its link alone.
    """

    observation_space = spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(N_DOORS))
    action_space = spaces.Discrete(N_DOORS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        rng, self.n_steps = self.np_random, 0
        n = self.n_halls = 2 * int(rng.integers(FEWEST // 2, MOST // 2 + 1))
        ring = rng.permutation(n)  # all halls are on it; a third door leads across
        across = rng.permutation(n).reshape(-1, 2)
        links = np.concatenate([np.stack([ring, np.roll(ring, 1)], axis=1), across])
        links = np.concatenate([links, links[:, ::-1]])
        order = np.lexsort((rng.random(len(links)), links[:, 0]))  # doors in a random order
        self.behind = links[order, 1].reshape(n, N_DOORS)
        self.here, self.goal = rng.choice(n, 2, replace=False)
        return self.look(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.here, self.n_steps = self.behind[self.here, action], self.n_steps + 1
        is_there = bool(self.here == self.goal)
        return self.look(), 1.0 if is_there else -0.05, is_there, self.n_steps == N_STEPS, {}

    def look(self) -> spaces.GraphInstance:
        nodes = np.zeros((self.n_halls, 2), np.float32)
        nodes[self.here, 0] = nodes[self.goal, 1] = 1
        halls, doors = np.indices(self.behind.shape).reshape(2, -1)
        return spaces.GraphInstance(nodes, doors, np.stack([halls, self.behind.ravel()], axis=1))


class GraphNet(nn.Module):
    """Halls hear of their neighbours in some rounds; then each door of the agent's hall is judged.

    A round is torch-geometric's `GraphConv(size, size)` and a ReLU.
    """

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(2, size)
        self.own = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(N_ROUNDS))
        self.heard = nn.ModuleList(nn.Linear(size, size) for _ in range(N_ROUNDS))
        self.policy = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1))
        self.critic = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1))

    def forward(self, graphs: Mapping[str, Jagged]) -> ModelOutputs:
        # As torch-geometric has it: all graphs as one, with numbers of nodes that go on.
        x, batch, (source, target) = batch_graphs(graphs["nodes"], graphs["edge_links"])
        doors = graphs["edges"].packed().values
        hidden = self.first(x).relu()
        for own, heard in zip(self.own, self.heard, strict=True):
            messages = torch.zeros_like(hidden).index_add(0, target, hidden[source])
            hidden = (own(hidden) + heard(messages)).relu()
        is_here = x[:, 0] > 0
        is_own = is_here[source]  # edges that are the doors of the agent's hall
        logits = x.new_zeros(len(graphs["nodes"]), N_DOORS)
        places = batch[source[is_own]], doors[is_own].long()
        logits = logits.index_put(places, self.policy(hidden[target[is_own]]).squeeze(-1))
        value = self.critic(hidden[is_here]).squeeze(-1)
        return ModelOutputs(DistParams(logits=logits), value)


def train(config: Config, run: RunFolder, metrics: Metrics) -> float:
    """Train; return the mean return of the last 100 episodes."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)

    cages = build_cages(Maze, N_ENVS, seed=config.seed, n_workers=0)
    capacity = {"nodes": MOST, "edges": MOST * N_DOORS}  # of one graph, which no space tells
    example = build_example(Maze, storage=config.storage, capacity=capacity)
    device = example["reward"].to_torch().device  # where a GPU is, samples are in its memory

    model = GraphNet().to(device)
    agent = CategoricalPgAgent(model, Categorical(dim=N_DOORS), example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS))
    sampler = BasicSampler(cages, agent, samples)

    transforms = [EstimateAdvantage(discount=DISCOUNT, gae_lambda=0.95), NormalizeAdvantage()]
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-5, fused=True)
    algorithm = PPO(agent, optimizer, SETTINGS, rng=np.random.default_rng(config.seed))

    parts = {"agent": agent, "algorithm": algorithm}
    checkpoints = Checkpoints(run.checkpoints, sampler, seed=config.seed, **parts)
    hooks = [every(CHECKPOINT_EVERY, checkpoints)]
    settings = {"n_steps": config.steps, "transforms": transforms, "after_batch": hooks}
    runner = RLRunner(sampler, algorithm, metrics, **settings)
    with ExitStack() as stack:  # closes environments and memory, also after an error
        stack.callback(samples.close)
        stack.callback(sampler.close)
        for cage in cages:
            stack.enter_context(cage)
        summary = runner.run(resume=checkpoints if config.resume else None)
    agent.save(run.model)
    return summary.mean_return


def main(config: Config) -> None:
    run = RunFolder(config, name="graph_ppo")
    with run.open_metrics(config.steps) as metrics:
        print(f"score {train(config, run, metrics):.3f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
