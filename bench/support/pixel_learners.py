"""Learners of Breakout whose halves are timed apart: sampling, and learning from what it gave."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch

from parllel.patterns import build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.samplers import AlternatingSampler
from parllel.torch.agents import CategoricalPgAgent, QAgent
from parllel.torch.algos import DQN, PPO, DQNSettings, PPOSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import NatureCnn, QNetwork
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage
from support.atari import (
    N_ACTIONS,
    N_CORES,
    SEED,
    STACK,
    build_model,
    example_step,
    make_cages,
    with_torch_threads,
)

DISCOUNT, GAE_LAMBDA = 0.99, 0.95
N_EPOCHS, CLIP, ENTROPY_COEFFICIENT, PPO_RATE = 4, 0.1, 0.01, 2.5e-4
EPSILON, DQN_RATE = 0.01, 1e-4
TARGET_PERIOD = 1_000  # updates


class Learner(NamedTuple):
    """The halves of a learner, each a function without arguments.

    Args:
        sample: collects a batch.
        learn: makes all updates that follow a batch.
        close: ends the environments.
        draw: draws one minibatch from a replay buffer, as `learn` does for each update.
    """

    sample: Callable[[], object]
    learn: Callable[[], object]
    close: Callable[[], object]
    draw: Callable[[], object] | None = None


class PpoSize(NamedTuple):
    """Numbers of PPO: T steps of B environments for each batch, and minibatches of a pass."""

    T: int
    B: int
    n_minibatches: int


class DqnSize(NamedTuple):
    """Numbers of DQN.

    Args:
        T, B: steps of each environment between updates, and environments.
        batch_size: transitions of an update.
        steps_per_update: environment steps for each update.
        n_kept: transitions that the replay buffer holds.
    """

    T: int
    B: int
    batch_size: int
    steps_per_update: int
    n_kept: int

    @property
    def n_updates(self) -> int:
        return self.T * self.B // self.steps_per_update


def our_ppo(size: PpoSize, *, channels_last: bool = True, storage: str | None = "local") -> Learner:
    cages = make_cages(size.B, max(N_CORES - 1, 1))
    example = example_step(cages[0], storage)
    device = example["reward"].to_torch().device
    model = build_model(channels_last=channels_last).to(device)
    agent = CategoricalPgAgent(model, Categorical(N_ACTIONS), example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(size.T, size.B))
    sampler = AlternatingSampler(cages, agent, samples)
    transforms = [EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA), NormalizeAdvantage()]
    settings = PPOSettings(
        n_epochs=N_EPOCHS,
        n_minibatches=size.n_minibatches,
        clip=CLIP,
        entropy_coefficient=ENTROPY_COEFFICIENT,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=PPO_RATE, eps=1e-5, fused=True)
    algorithm = PPO(agent, optimizer, settings, rng=np.random.default_rng(SEED))

    def learn() -> None:
        batch = samples
        for transform in transforms:
            batch = transform(batch)
        algorithm.optimize(batch)

    return with_threads_of_halves(
        Learner(sampler.collect_batch, learn, closer(samples, sampler, *cages))
    )


def our_dqn(size: DqnSize, *, channels_last: bool = True, storage: str | None = "local") -> Learner:
    cages = make_cages(size.B, max(N_CORES - 1, 1))
    example = example_step(cages[0], storage)
    device = example["reward"].to_torch().device
    torch.manual_seed(SEED)
    model = QNetwork(NatureCnn(STACK, channels_last=channels_last), N_ACTIONS).to(device)
    agent = QAgent(model, example["observation"], epsilon=EPSILON)
    samples = build_sample_tree(
        example,
        agent,
        batch_shape=(size.T, size.B),
        full_size=size.n_kept // size.B,
        frames="zero",
    )
    replay = ReplayBuffer(samples, rng=np.random.default_rng(SEED), discount=DISCOUNT)
    sampler = AlternatingSampler(cages, agent, samples, replay=replay)
    settings = DQNSettings(
        batch_size=size.batch_size,
        n_updates=size.n_updates,
        double=False,
        target_period=TARGET_PERIOD,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=DQN_RATE, fused=True)
    algorithm = DQN(agent, replay, optimizer, settings)
    return with_threads_of_halves(
        Learner(
            sampler.collect_batch,
            lambda: algorithm.optimize(samples),
            closer(samples, replay, sampler, *cages),
            lambda: replay.sample(size.batch_size),
        )
    )


def with_threads_of_halves(learner: Learner) -> Learner:
    """Return a learner with one torch thread where environments step beside, else with all."""
    return learner._replace(
        sample=with_torch_threads(1, learner.sample),
        learn=with_torch_threads(N_CORES, learner.learn),
    )


def closer(*parts: Any) -> Callable[[], object]:  # Any: whatever has a method `close`
    """Return a function that closes parts, the last ones first."""
    stack = ExitStack()
    for part in parts:
        stack.callback(part.close)
    return stack.close
