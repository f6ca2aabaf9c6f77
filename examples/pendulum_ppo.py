# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train PPO on Pendulum-v1: a continuous action, drawn from a Gaussian that is clipped."""

from contextlib import ExitStack
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro

from parllel import Array, ArrayDict
from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import Checkpoints, RLRunner, RunConfig, RunFolder, RunSummary, every
from parllel.samplers import BasicSampler
from parllel.schedules import linear
from parllel.torch.agents import PgAgent
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import ClippedGaussian
from parllel.torch.models import GaussianActorCritic, Mlp
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage

N_ENVS, T = 8, 128  # environments, and steps of each in a batch
DISCOUNT, GAE_LAMBDA = 0.95, 0.95
SETTINGS = PPOSettings(n_epochs=10, n_minibatches=8, learning_rate=linear(1e-3, 0.0))
CHECKPOINT_EVERY = 50_000


@dataclass(frozen=True)
class Config(RunConfig):
    """Train PPO on Pendulum-v1."""

    steps: int = 100_000


def make_env() -> gym.Env:
    return gym.make("Pendulum-v1")  # its Box of actions is [-2, 2]: the agent scales to it


class ScaleRewards:
    """Learn from a tenth of the rewards: values of some hundred take long to be learned."""

    def __init__(self) -> None:
        self.scaled: Array | None = None

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        reward = batch["reward"]
        if self.scaled is None:
            self.scaled = reward.new_array(padding=0, full_size=len(reward))
        self.scaled.to_torch().copy_(0.1 * reward.to_torch())
        return ArrayDict({**batch, "reward": self.scaled})


def train(config: Config, run: RunFolder, metrics: Metrics) -> RunSummary:
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)  # networks this small are slower with more

    cages = build_cages(make_env, N_ENVS, seed=config.seed, n_workers=0)
    example = build_example(make_env, storage=config.storage)
    device = example["reward"].to_torch().device  # where a GPU is, samples are in its memory

    # A network for the policy and one for the value; the deviation is a parameter of its own.
    model = GaussianActorCritic(Mlp(3), n_actions=1, value_encoder=Mlp(3)).to(device)
    agent = PgAgent(model, ClippedGaussian(dim=1), example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS))
    sampler = BasicSampler(cages, agent, samples)

    advantage = EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA)
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-5, fused=True)
    algorithm = PPO(agent, optimizer, SETTINGS, rng=np.random.default_rng(config.seed))

    # A checkpoint has all that the rest of the run depends on: it goes on as if never cut off.
    parts = {"agent": agent, "algorithm": algorithm}
    checkpoints = Checkpoints(run.checkpoints, sampler, seed=config.seed, **parts)
    runner = RLRunner(
        sampler,
        algorithm,
        metrics,
        n_steps=config.steps,
        transforms=[ScaleRewards(), advantage, NormalizeAdvantage()],
        after_batch=[every(CHECKPOINT_EVERY, checkpoints)],
    )
    with ExitStack() as stack:  # closes environments and memory, also after an error
        stack.callback(samples.close)
        stack.callback(sampler.close)
        for cage in cages:
            stack.enter_context(cage)
        summary = runner.run(resume=checkpoints if config.resume else None)
    agent.save(run.model)
    return summary


def main(config: Config) -> None:
    run = RunFolder(config, name="pendulum_ppo")
    with run.open_metrics(config.steps) as metrics:
        summary = train(config, run, metrics)
    print(f"learning curve: {run.curve}; mean return of the last 100 episodes:")
    print(f"score {summary.mean_return:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
