# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train PPO with a memory: CartPole without velocities, and the same without a memory beside it."""

import csv
from contextlib import ExitStack
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn

from parllel.metrics import LearningCurve, Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import Checkpoints, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import BasicSampler, RecurrentSampler
from parllel.schedules import linear
from parllel.torch.agents import PgAgent, RecurrentPgAgent
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic, Lstm, Mlp, RecurrentNetwork
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage, NormalizeRewards

N_ENVS, T = 16, 128  # environments, and steps of each in a batch
DISCOUNT, GAE_LAMBDA = 0.99, 0.95
SETTINGS = PPOSettings(n_epochs=6, n_minibatches=4, learning_rate=linear(3e-3, 0.0))
N_FEATURES = 64
CHECKPOINT_EVERY = 50_000
KEY = "train/episode_return"


@dataclass(frozen=True)
class Config(RunConfig):
    """Train PPO with a memory on CartPole without velocities, and without one."""

    steps: int = 120_000


class WithoutVelocities(gym.ObservationWrapper):
    """Show where cart and pole are, in parts of what ends the episode, and not how they move."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.unit = env.observation_space.high[::2] / 2
        self.observation_space = gym.spaces.Box(-2, 2, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[::2] / self.unit


def make_env() -> gym.Env:
    return WithoutVelocities(gym.make("CartPole-v1", disable_env_checker=True))


def make_model(has_memory: bool) -> nn.Module:
    if not has_memory:
        return ActorCritic(Mlp(2, [N_FEATURES, N_FEATURES]), n_logits=2)
    head = ActorCritic(nn.Identity(), n_logits=2, n_features=N_FEATURES)
    return RecurrentNetwork(Mlp(2, [N_FEATURES]), Lstm(N_FEATURES, N_FEATURES), head)


def train(config: Config, run: RunFolder, metrics: Metrics, *, has_memory: bool = True) -> float:
    """Train; return the mean return of the last 100 episodes."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    cages = build_cages(make_env, N_ENVS, seed=config.seed, n_workers=0)
    example = build_example(make_env, storage=config.storage)
    device = example["reward"].to_torch().device  # where a GPU is, samples are in its memory

    # With a memory: another agent, and another sampler, which carries its state.
    make_agent, make_sampler = (
        (RecurrentPgAgent, RecurrentSampler) if has_memory else (PgAgent, BasicSampler)
    )
    model = make_model(has_memory).to(device)
    agent = make_agent(model, Categorical(dim=2), example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS))
    sampler = make_sampler(cages, agent, samples)

    # Rewards are scaled so that the value, which shares layers with the policy, is about 1.
    transforms = [
        NormalizeRewards(discount=DISCOUNT),
        EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA),
        NormalizeAdvantage(),
    ]
    # It gets minibatches of whole environments if the agent has a memory, and of any rows if not.
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-5, fused=True)
    algorithm = PPO(agent, optimizer, SETTINGS, rng=np.random.default_rng(config.seed))

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
        for each in (samples, sampler, *cages):
            stack.callback(each.close)
        summary = runner.run(resume=checkpoints if config.resume else None)
    agent.save(run.model)
    return summary.mean_return


def draw(curve: LearningCurve, name: str, run: RunFolder) -> None:
    """Add the curve of a run to a picture."""
    with (run.path / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            curve.log(int(row["step"]), {name: float(row[KEY])} if row[KEY] else {})


def main(config: Config) -> None:
    run = RunFolder(config, name="memory_ppo")
    with run.open_metrics(config.steps) as metrics:
        score = train(config, run, metrics)

    # The other run lies in a folder of its own.
    out = run.path / "feed_forward"
    other = replace(config, out=out, resume=config.resume and (out / "config.json").exists())
    other_run = RunFolder(other, name="memory_ppo")
    with other_run.open_metrics(config.steps) as metrics:
        other_score = train(other, other_run, metrics, has_memory=False)

    names = ("with a memory", "without a memory")
    with LearningCurve(run.curve, y=names) as curve:
        for name, each in zip(names, (run, other_run), strict=True):
            draw(curve, name, each)
    print(f"curves: {run.curve}; model: {run.model}; without a memory: {other_score:.1f}")
    print(f"score {score:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
