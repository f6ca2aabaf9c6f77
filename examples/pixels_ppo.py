# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]", "minigrid>=3"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train PPO from pixels: find a key, open a door with it, and reach the goal behind (MiniGrid)."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import gymnasium as gym
import minigrid  # noqa: F401  # registers its environments
import numpy as np
import torch
import tyro
from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper
from torch import nn

from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import Checkpoints, RLRunner, RunConfig, RunFolder, every, record_side_by_side
from parllel.samplers import AlternatingSampler
from parllel.torch.agents import CategoricalPgAgent
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage

N_ENVS, T = 16, 64  # environments, and steps of each in a batch
DISCOUNT, GAE_LAMBDA = 0.99, 0.95
SETTINGS = PPOSettings(n_epochs=3, n_minibatches=4, entropy_coefficient=0.01, learning_rate=1e-3)
CHECKPOINT_EVERY = 50_000


@dataclass(frozen=True)
class Config(RunConfig):
    """Train PPO on MiniGrid-DoorKey-5x5 from pixels."""

    steps: int = 120_000


def make_env(render_mode: str | None = None) -> gym.Env:
    env = gym.make("MiniGrid-DoorKey-5x5-v0", render_mode=render_mode)
    return ImgObsWrapper(RGBImgObsWrapper(env, tile_size=4))  # uint8 [20, 20, 3]


class Encoder(nn.Module):
    """A grid of 5 by 5 tiles of 4 by 4 pixels: one position of the first filter for each tile."""

    n_features = 128

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, kernel_size=4, stride=4),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, self.n_features),
            nn.ReLU(),
        )
        for number in (0, 2, 5):  # with torch's own weights it takes twice as many steps
            nn.init.orthogonal_(self.layers[number].weight, gain=2**0.5)
            nn.init.zeros_(self.layers[number].bias)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.layers(frames.permute(0, 3, 1, 2).float() / 255)


class RandomAgent:
    """Takes any action: what the trained agent is compared with."""

    def __init__(self, n_actions: int, seed: int) -> None:
        self.n_actions, self.rng = n_actions, np.random.default_rng(seed)

    def step(self, observation: object, *, deterministic: bool = False) -> tuple[np.ndarray, dict]:
        return self.rng.integers(self.n_actions, size=len(observation)), {}


def train(config: Config, run: RunFolder, metrics: Metrics) -> tuple[CategoricalPgAgent, float]:
    """Train; return the agent, and the mean return of the last 100 episodes."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)  # the other cores step environments

    # Two workers step the environments; while one half of them steps, the agent acts for the other.
    cages = build_cages(make_env, N_ENVS, seed=config.seed, n_workers=2)
    example = build_example(make_env, storage=config.storage)
    device = example["reward"].to_torch().device  # where a GPU is, samples are in its memory

    n_actions = int(cages[0].action_space.n)
    model = ActorCritic(Encoder(), n_actions).to(device)
    agent = CategoricalPgAgent(model, Categorical(dim=n_actions), example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS))
    sampler = AlternatingSampler(cages, agent, samples)

    transforms = [EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA), NormalizeAdvantage()]
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-5, fused=True)
    algorithm = PPO(agent, optimizer, SETTINGS, rng=np.random.default_rng(config.seed))

    # What is saved, so that a run that was cut off goes on with the same numbers.
    parts = {"agent": agent, "algorithm": algorithm}
    checkpoints = Checkpoints(run.checkpoints, sampler, seed=config.seed, **parts)
    runner = RLRunner(
        sampler,
        algorithm,
        metrics,
        n_steps=config.steps,
        transforms=transforms,
        after_batch=[every(CHECKPOINT_EVERY, checkpoints)],
    )
    with ExitStack() as stack:  # closes environments and memory, also after an error
        stack.callback(samples.close)
        stack.callback(sampler.close)
        for cage in cages:
            stack.enter_context(cage)
        summary = runner.run(resume=checkpoints if config.resume else None)
    agent.save(run.model)
    return agent, summary.mean_return


def main(config: Config) -> None:
    run = RunFolder(config, name="pixels_ppo")
    with run.open_metrics(config.steps) as metrics:
        agent, score = train(config, run, metrics)
    record_side_by_side(
        {"trained agent": agent, "random agent": RandomAgent(agent.distribution.dim, config.seed)},
        partial(make_env, "rgb_array"),
        run.video,
        n_episodes=100,  # more than these steps hold: both play to the end
        max_steps=150,
        deterministic=False,
        seed=config.seed,
    )
    run.print(f"learning curve: {run.curve}; the agent beside a random one: {run.video}")
    run.print(f"score {score:.3f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
