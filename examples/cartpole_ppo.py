"""Train PPO on CartPole-v1: from environments to a trained agent, read from top to bottom."""

import argparse
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from parllel.metrics import CsvMetrics, LearningCurve, Metrics, ProgressBar, TensorBoardMetrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import RLRunner, RunSummary
from parllel.samplers import BasicSampler
from parllel.schedules import linear
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical, DistParams
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage

N_ENVS, T = 16, 64  # environments, and steps of each in a batch
DISCOUNT, GAE_LAMBDA = 0.98, 0.9
SETTINGS = PPOSettings(n_epochs=10, n_minibatches=4, learning_rate=linear(2e-3, 0.0))


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


def train(seed: int, n_steps: int, metrics: Metrics, storage: str | None = None) -> RunSummary:
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # networks this small are slower with more

    # Environments, and one step of one of them, which tells shapes and dtypes.
    # A step takes 6 us, too little for workers to gain much: n_workers=0 keeps them here.
    cages = build_cages(make_env, N_ENVS, seed=seed, n_workers=0)
    example = build_example(make_env, storage=storage)
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
    algorithm = PPO(agent, optimizer, SETTINGS, rng=np.random.default_rng(seed))

    runner = RLRunner(sampler, algorithm, metrics, n_steps=n_steps, transforms=transforms)
    with ExitStack() as stack:  # closes environments and memory, also after an error
        stack.callback(samples.close)
        stack.callback(sampler.close)
        for cage in cages:
            stack.enter_context(cage)
        return runner.run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--storage", help="memory of the samples; the GPU's where there is one")
    started = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"  # each run has a folder of its own
    parser.add_argument("--out", type=Path, default=Path("runs/cartpole_ppo") / started)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    sinks = [
        CsvMetrics(out / "metrics.csv"),
        TensorBoardMetrics(out / "tensorboard"),
        LearningCurve(out / "learning_curve.png"),
        ProgressBar(arguments.steps),
    ]
    with Metrics(*sinks) as metrics:
        summary = train(arguments.seed, arguments.steps, metrics, arguments.storage)
    print(
        f"mean return of the last 100 episodes: {summary.mean_return:.1f}"
        f" (sampling {summary.sample_s:.1f} s, learning {summary.learn_s:.1f} s)\n"
        f"learning curve: {out / 'learning_curve.png'}; all numbers: {out / 'metrics.csv'}"
    )


if __name__ == "__main__":
    main()
