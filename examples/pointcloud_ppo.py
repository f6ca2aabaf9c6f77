# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train PPO on clouds of points: turn a gripper until it fits the object, then close it."""

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
from parllel.cages import PointCloud
from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import Checkpoints, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import BasicSampler
from parllel.torch.agents import CategoricalPgAgent
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage

N_ENVS, T, DISCOUNT = 16, 64, 0.97  # environments, and steps of each in a batch
SETTINGS = PPOSettings(n_epochs=4, n_minibatches=4, entropy_coefficient=0.01, learning_rate=1e-3)
CHECKPOINT_EVERY = 50_000
FEWEST, MOST = 24, 64  # points of a cloud
TURN, N_TURNS = np.pi / 8, 20  # the angle of a turn, and how many an episode has at most


@dataclass(frozen=True)
class Config(RunConfig):
    """Train PPO with a PointNet to grasp bars and mugs."""

    steps: int = 60_000


class Grasp(gym.Env):
    """A gripper above an object: a bar, which is taken across, or a mug, taken by its handle.

    It sees points of the surface in its own frame, in any order. Their mean is 0 and their size 1:
    only the shape tells where to turn. A turn costs 0.02, and a right grasp pays 1.
    """

    observation_space = PointCloud(MOST, (3,), min_points=FEWEST)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        rng, self.n_turns = self.np_random, 0
        n_points, is_mug = int(rng.integers(FEWEST, MOST + 1)), rng.integers(2)
        points = (sample_mug if is_mug else sample_bar)(rng, n_points)
        points += rng.normal(0, 0.03, points.shape)
        points -= points.mean(axis=0)
        self.points = points / np.sqrt((points**2).sum(axis=1).mean())
        self.period = 2 * np.pi if is_mug else np.pi  # a bar looks the same from behind
        self.angle = TURN * (rng.integers(16) + rng.uniform(-0.3, 0.3))
        return self.look(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if action == 2:  # close
            off = (self.angle + self.period / 2) % self.period - self.period / 2
            return self.look(), float(abs(off) < TURN / 2), True, False, {}
        self.angle += TURN if action else -TURN
        self.n_turns += 1
        return self.look(), -0.02, False, self.n_turns == N_TURNS, {}

    def look(self) -> np.ndarray:
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = self.points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        return self.np_random.permutation(turned).astype(np.float32)


def sample_bar(rng: np.random.Generator, n_points: int) -> np.ndarray:
    """Draw points of the surface of a box that is long in x."""
    cube = rng.uniform(-1, 1, (n_points, 3))
    sizes = [1, rng.uniform(0.3, 0.5), rng.uniform(0.2, 0.4)]
    return cube / abs(cube).max(axis=1, keepdims=True) * sizes


def sample_mug(rng: np.random.Generator, n_points: int) -> np.ndarray:
    """Draw points of a cylinder, a quarter of them of a handle in x."""
    around, height = rng.uniform([-np.pi, -0.6], [np.pi, 0.6], (n_points, 2)).T
    points = np.stack([0.6 * np.cos(around), 0.6 * np.sin(around), height], axis=1)
    n_handle = n_points // 4
    bow, width = rng.uniform([-np.pi / 2, -0.1], [np.pi / 2, 0.1], (n_handle, 2)).T
    points[:n_handle] = np.stack([0.6 + 0.5 * np.cos(bow), width, 0.4 * np.sin(bow)], axis=1)
    return points


class PointNet(nn.Module):
    """The same layers for each point, the maximum over the points of a cloud, and more layers."""

    n_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.of_point = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU())
        self.of_cloud = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())

    def forward(self, clouds: Jagged) -> torch.Tensor:
        clouds = clouds.packed()  # the points of all clouds, one after the other
        features = self.of_point(clouds.values)
        return self.of_cloud(torch.segment_reduce(features, "max", lengths=clouds.counts))


def train(config: Config, run: RunFolder, metrics: Metrics) -> float:
    """Train; return the mean return of the last 100 episodes."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    cages = build_cages(Grasp, N_ENVS, seed=config.seed, n_workers=0)
    example = build_example(Grasp, storage=config.storage)  # the space tells the most points
    device = example["reward"].to_torch().device  # where a GPU is, samples are in its memory

    model = ActorCritic(PointNet(), n_logits=3).to(device)
    agent = CategoricalPgAgent(model, Categorical(dim=3), example["observation"])
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
    run = RunFolder(config, name="pointcloud_ppo")
    with run.open_metrics(config.steps) as metrics:
        print(f"score {train(config, run, metrics):.3f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
