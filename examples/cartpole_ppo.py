# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train PPO on CartPole-v1: from environments to a trained agent, read from top to bottom."""

from contextlib import ExitStack
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn

from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import Checkpoints, RLRunner, RunConfig, RunFolder, RunSummary, every
from parllel.samplers import BasicSampler
from parllel.schedules import linear
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical, DistParams
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage

N_ENVS, T = 16, 64  # environments, and steps of each in a batch
DISCOUNT, GAE_LAMBDA = 0.98, 0.9
SETTINGS = PPOSettings(n_epochs=10, n_minibatches=4, learning_rate=linear(2e-3, 0.0))
CHECKPOINT_EVERY = 50_000


@dataclass(frozen=True)
class Config(RunConfig):
    """Train PPO on CartPole-v1."""

    steps: int = 200_000


class ActorCritic(nn.Module):
    """Two small networks: one for the policy, one for the value."""

    def __init__(self, n_inputs: int, n_actions: int) -> None:
        super().__init__()
        self.policy = network(n_inputs, n_actions)
        self.critic = network(n_inputs, 1)

    def forward(self, observation: Tensor) -> ModelOutputs:
        logits = self.policy(observation)
        value = self.critic(observation).squeeze(-1)
        return ModelOutputs(dist_params=DistParams(logits=logits), value=value)


def network(n_inputs: int, n_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n_outputs)
    )


def make_env() -> gym.Env:
    return gym.make("CartPole-v1", disable_env_checker=True)


def train(config: Config, run: RunFolder, metrics: Metrics) -> RunSummary:
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)  # networks this small are slower with more

    # Environments, and one step of one of them, which tells shapes and dtypes.
    # A step takes 6 us, too little for workers to gain much: n_workers=0 keeps them here.
    cages = build_cages(make_env, N_ENVS, seed=config.seed, n_workers=0)
    example = build_example(make_env, storage=config.storage)
    device = example["reward"].to_torch().device  # where a GPU is, samples are in its memory

    # An agent: a model and the distribution of its actions.
    model = ActorCritic(n_inputs=4, n_actions=2).to(device)
    agent = CategoricalPgAgent(model, Categorical(dim=2), example_obs=example["observation"])

    # The tree that holds every sample. Environments write it, the agent reads it, in place.
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS))
    sampler = BasicSampler(cages, agent, samples)

    # What happens to a batch: advantages first, then PPO.
    transforms = [EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA), NormalizeAdvantage()]
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
    return summary


def main(config: Config) -> None:
    run = RunFolder(config, name="cartpole_ppo")
    with run.open_metrics(config.steps) as metrics:
        summary = train(config, run, metrics)
    print(
        f"sampling {summary.sample_s:.1f} s, learning {summary.learn_s:.1f} s; learning curve:"
        f" {run.curve}; mean return of the last 100 episodes:"
    )
    print(f"score {summary.mean_return:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
