# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train DQN with a memory (R2D2) from sequences: CartPole without velocities."""

from contextlib import ExitStack
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn

from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import SequenceReplayBuffer
from parllel.runners import Checkpoints, Evaluator, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import EvalSampler, RecurrentSampler
from parllel.schedules import linear
from parllel.torch.agents import RecurrentQAgent
from parllel.torch.algos import DQN, DQNSettings
from parllel.torch.models import Lstm, Mlp, QNetwork, RecurrentNetwork

N_ENVS, T = 16, 8  # environments, and steps of each between updates
RING = 50_000 // N_ENVS  # steps of each environment that are kept
LENGTH, BURN_IN = 16, 8  # steps of a sequence that are learned from, and before them
SETTINGS = DQNSettings(
    batch_size=64,
    n_updates=8,
    n_steps=5,
    discount=0.98,  # values up to 50: near 100, what one action adds is lost in their errors
    rescales_values=True,
    target_period=1,
    target_share=0.01,
    learning_rate=linear(1e-3, 0.0),
)
EPSILON = linear(1.0, 0.02, until=0.3)
N_FEATURES = 64
LEARN_AFTER, EVALUATE_EVERY, CHECKPOINT_EVERY = 2_000, 10_000, 50_000


@dataclass(frozen=True)
class Config(RunConfig):
    """Train DQN with a memory on CartPole without velocities."""

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


def train(config: Config, run: RunFolder, metrics: Metrics) -> float:
    """Train, and return the mean return of the last evaluation."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    cages = build_cages(make_env, N_ENVS, seed=config.seed, n_workers=0)
    eval_cages = build_cages(make_env, N_ENVS, n_workers=0)
    example = build_example(make_env, storage=config.storage)
    device = example["reward"].to_torch().device  # where a GPU is, the ring is in its memory

    head = QNetwork(nn.Identity(), n_actions=2, n_features=N_FEATURES, dueling=True, n_hidden=64)
    core = Lstm(N_FEATURES, N_FEATURES)
    model = RecurrentNetwork(Mlp(2, [N_FEATURES]), core, head).to(device)
    # Sequences begin with the state that the agent had in their first step.
    agent = RecurrentQAgent(model, example["observation"], epsilon=EPSILON, keeps_state=True)

    # The ring of the sample tree is the storage of the replay buffer.
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS), full_size=RING - RING % T)
    replay = SequenceReplayBuffer(
        samples,
        rng=np.random.default_rng(config.seed),
        length=LENGTH,
        burn_in=BURN_IN,
        episode_end="pad",
    )
    sampler = RecurrentSampler(cages, agent, samples, replay=replay)
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-5, fused=True)
    algorithm = DQN(agent, replay, optimizer, SETTINGS)

    eval_sampler = EvalSampler(
        eval_cages, agent, n_episodes=2 * N_ENVS, seed=1, storage=config.storage
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
    run = RunFolder(config, name="memory_dqn")
    with run.open_metrics(config.steps, curve=["train/episode_return", "eval/episode_return"]) as m:
        score = train(config, run, m)
    print(f"learning curve: {run.curve}; model: {run.model}; mean return of 32 episodes:")
    print(f"score {score:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
