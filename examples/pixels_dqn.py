# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]", "minatar>=1.0.15"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train DQN on MinAtar's Breakout: double, dueling, three steps, by priority (a small Rainbow)."""

from contextlib import ExitStack
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from minatar.gym import BaseEnv
from torch import nn

from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import PrioritizedReplayBuffer
from parllel.runners import Checkpoints, Evaluator, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import BasicSampler, EvalSampler
from parllel.schedules import linear
from parllel.torch.agents import QAgent
from parllel.torch.algos import DQN, DQNSettings
from parllel.torch.models import QNetwork

N_ENVS, T = 8, 4  # environments, and steps of each between updates
RING = 100_000 // N_ENVS  # steps of each environment that are kept
N_STEPS, DISCOUNT = 3, 0.99
SETTINGS = DQNSettings(
    batch_size=32,
    n_updates=8,  # one for each 4 steps
    target_period=500,
    learning_rate=3e-4,
    beta=linear(0.4, 1.0),
)
EPSILON = linear(1.0, 0.01, until=0.2)
LEARN_AFTER, EVALUATE_EVERY, CHECKPOINT_EVERY = 5_000, 25_000, 50_000


@dataclass(frozen=True)
class Config(RunConfig):
    """Train DQN on MinAtar's Breakout."""

    steps: int = 150_000


class Breakout(BaseEnv):
    """Breakout on 10 by 10 pixels of 4 channels; a channel has the ball's last place."""

    def __init__(self) -> None:
        super().__init__("breakout", use_minimal_action_set=True)

    def reset(self, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict]:
        self.game.last_action = 0  # MinAtar may repeat that of the episode before
        return super().reset(seed=seed, options=options)


def make_env() -> gym.Env:
    return gym.wrappers.TimeLimit(Breakout(), 5_000)


class Encoder(nn.Module):
    n_features = 16 * 8 * 8

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 16, kernel_size=3), nn.ReLU(), nn.Flatten())

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.layers(frames.permute(0, 3, 1, 2).float())


def train(config: Config, run: RunFolder, metrics: Metrics) -> float:
    """Train, and return the mean return of the last evaluation."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    cages = build_cages(make_env, N_ENVS, seed=config.seed, n_workers=0)
    eval_cages = build_cages(make_env, N_ENVS, n_workers=0)
    example = build_example(make_env, storage=config.storage)
    device = example["reward"].to_torch().device  # where a GPU is, the ring is in its memory

    n_actions = int(cages[0].action_space.n)
    model = QNetwork(Encoder(), n_actions, dueling=True, n_hidden=128).to(device)
    agent = QAgent(model, example["observation"], epsilon=EPSILON)

    # The ring of the sample tree is the storage of the replay buffer.
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS), full_size=RING - RING % T)
    replay = PrioritizedReplayBuffer(
        samples, rng=np.random.default_rng(config.seed), n_steps=N_STEPS, discount=DISCOUNT
    )
    sampler = BasicSampler(cages, agent, samples, replay=replay)
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-5, fused=True)
    algorithm = DQN(agent, replay, optimizer, SETTINGS)

    eval_sampler = EvalSampler(
        eval_cages, agent, n_episodes=5 * N_ENVS, max_steps=5_000, seed=1, storage=config.storage
    )
    scores = []
    evaluation = Evaluator(
        eval_sampler, after=[lambda _, means: scores.append(means["episode_return"])]
    )
    parts = {"agent": agent, "algorithm": algorithm, "replay": replay}
    checkpoints = Checkpoints(run.checkpoints, sampler, seed=config.seed, **parts)
    runner = RLRunner(
        sampler,
        algorithm,
        metrics,
        n_steps=config.steps,
        log_every=1_000,
        learn_after=min(LEARN_AFTER, config.steps // 2),
        after_batch=[every(EVALUATE_EVERY, evaluation), every(CHECKPOINT_EVERY, checkpoints)],
    )
    with ExitStack() as stack:  # closes environments and memory, also after an error
        for each in (samples, replay, eval_sampler, sampler, *cages, *eval_cages):
            stack.callback(each.close)
        runner.run(resume=checkpoints if config.resume else None)
        if not scores:  # a run was resumed that had come to its end
            evaluation(runner)
    agent.save(run.model)
    return scores[-1]


def main(config: Config) -> None:
    run = RunFolder(config, name="pixels_dqn")
    with run.open_metrics(config.steps, curve=["train/episode_return", "eval/episode_return"]) as m:
        score = train(config, run, m)
    print(f"learning curve: {run.curve}; model: {run.model}; mean return of 40 episodes:")
    print(f"score {score:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
