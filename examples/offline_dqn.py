# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train,minari]"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train DQN from a data set alone (Minari): what clumsy controllers did in CartPole-v1."""

import os
from contextlib import ExitStack
from dataclasses import dataclass

import minari
import numpy as np
import torch
import tyro
from torch import nn

from parllel import Array, ArrayDict, default_storage
from parllel.data import build_transition_tree, from_minari, to_minari
from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.runners import RunConfig, RunFolder, load_run, save_run
from parllel.samplers import BasicSampler, EvalSampler
from parllel.schedules import linear
from parllel.torch.agents import QAgent
from parllel.torch.algos import DQN, DQNSettings
from parllel.torch.models import QNetwork

ENV, OWN_DATASET = "CartPole-v1", "cartpole/mixed-v0"
N_ENVS, T, FULL_SIZE = 8, 250, 5_000  # of controllers, whose whole ring is the data set
DISCOUNT, N_HIDDEN = 0.99, 128
SETTINGS = DQNSettings(
    batch_size=128, n_updates=100, target_period=200, learning_rate=linear(1e-3, 0.0)
)
ABOUT = {"env": ENV, "eval_env": ENV, "author": "parllel", "author_email": "none"}
ABOUT |= {"algorithm_name": "controllers with random steps", "code_permalink": "offline_dqn.py"}
ABOUT |= {"description": "Whole episodes, from random ones to fair ones."}
EVALUATE_EVERY, CHECKPOINT_EVERY, N_EPISODES = 500, 1_000, 40  # updates; episodes


@dataclass(frozen=True)
class Config(RunConfig):
    """Train DQN for `steps` updates from a `dataset` on this machine, or from one of its own."""

    steps: int = 5_000
    dataset: str = ""


def make_agent(example: ArrayDict) -> QAgent:
    layers = nn.Sequential(nn.Linear(4, N_HIDDEN), nn.ReLU())
    layers.n_features = N_HIDDEN
    device = example["reward"].to_torch().device
    model = QNetwork(layers, 2, n_hidden=N_HIDDEN).to(device)
    return QAgent(model, example["observation"], epsilon=0.0)


class Clumsy:
    """Push to where the pole falls; but at random in 40 to 100% of steps."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._chance = np.linspace(0.4, 1.0, N_ENVS)

    def step(self, observation: Array, *, deterministic: bool = False) -> tuple[np.ndarray, dict]:
        rows = observation.to_ndarray() if observation.is_on_host else observation.to("local")
        angle, speed = np.asarray(rows)[:, 2:].T
        n = len(angle)
        is_random = self._rng.random(n) < self._chance[:n]
        return np.where(is_random, self._rng.integers(2, size=n), angle + speed > 0), {}


def collect(config: Config, example: ArrayDict) -> minari.MinariDataset:
    """Let controllers of all kinds play, and keep what they did."""
    agent = Clumsy(config.seed)
    cages = build_cages(ENV, N_ENVS, seed=config.seed, n_workers=0)
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS), full_size=FULL_SIZE)
    # Nothing learns from last observations of episodes that terminated; a data set has them, too.
    replay = ReplayBuffer(samples, rng=np.random.default_rng(config.seed), keep_terminated=True)
    sampler = BasicSampler(cages, agent, samples, replay=replay)
    with ExitStack() as stack:
        for each in (samples, replay, sampler, *cages):
            stack.callback(each.close)
        for _ in range(FULL_SIZE // T):
            sampler.collect_batch()
        return to_minari(
            replay,
            OWN_DATASET,
            observation_space=cages[0].observation_space,
            action_space=cages[0].action_space,
            metadata=ABOUT,
        )


def train(config: Config, run: RunFolder, metrics: Metrics) -> float:
    """Train, and return the mean return of the last evaluation."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    if not config.dataset:
        os.environ["MINARI_DATASETS_PATH"] = str(run.path / "datasets")
    example = build_example(ENV, storage=config.storage)
    is_there, name = config.dataset or config.resume, config.dataset or OWN_DATASET
    dataset = minari.load_dataset(name) if is_there else collect(config, example)
    returns = [float(episode.rewards.sum()) for episode in dataset]
    print(f"{len(returns)} episodes, mean return {np.mean(returns):.1f}, best {max(returns):.1f}")

    # A ring of one environment, which the data set fills: its episodes lie one after the other.
    spaces, storage = (dataset.observation_space, dataset.action_space), config.storage
    samples = build_transition_tree(
        *spaces, n_steps=dataset.total_steps, storage=storage or default_storage()
    )
    rng, n_final_obs = np.random.default_rng(config.seed), dataset.total_episodes
    replay = ReplayBuffer(samples, rng=rng, discount=DISCOUNT, n_final_obs=n_final_obs)
    from_minari(dataset, replay)
    agent = make_agent(example)
    algorithm = DQN(agent, replay, torch.optim.Adam(agent.model.parameters(), fused=True), SETTINGS)
    cages = build_cages(ENV, N_ENVS, n_workers=0)
    eval_sampler = EvalSampler(
        cages, agent, n_episodes=N_EPISODES, max_steps=2_000, seed=1, storage=config.storage
    )
    parts = {"agent": agent, "algorithm": algorithm, "replay": replay}
    n_updates = score = 0.0
    with ExitStack() as stack:
        for each in (samples, replay, eval_sampler, *cages):
            stack.callback(each.close)
        if config.resume and load_run(run.checkpoints, **parts):
            n_updates = algorithm.state_dict()["n_updates"]
            metrics.rewind(n_updates)
        while n_updates < config.steps:
            algorithm.set_progress(n_updates / config.steps)
            learned = algorithm.optimize(ArrayDict())  # no batch of a sampler: the ring is all
            n_updates = int(learned["n_updates"])
            values = {f"algo/{name}": value for name, value in learned.items()}
            if n_updates % EVALUATE_EVERY == 0 or n_updates >= config.steps:
                episodes = eval_sampler.collect_episodes()
                score = float(np.mean([episode.episode_return for episode in episodes]))
                values["eval/episode_return"] = score
            metrics.log(n_updates, values)
            if n_updates % CHECKPOINT_EVERY == 0 or n_updates >= config.steps:
                save_run(run.checkpoints, **parts)
    agent.save(run.model)
    return score


def main(config: Config) -> None:
    run = RunFolder(config, name="offline_dqn")
    with run.open_metrics(config.steps, curve=["eval/episode_return"]) as metrics:
        score = train(config, run, metrics)
    print(f"learning curve: {run.curve}; model: {run.model}; mean return of {N_EPISODES} episodes:")
    print(f"score {score:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
