"""An agent, and the replay buffer that its sampler has filled, for tests of what learns from it."""

from contextlib import ExitStack
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from parllel import ArrayDict
from parllel.patterns import build_cages, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.samplers import BasicSampler

T, B = 8, 3

Agent = TypeVar("Agent")


class World(NamedTuple, Generic[Agent]):
    """A sampler whose batches a replay buffer takes, and the agent."""

    agent: Agent
    replay: ReplayBuffer
    sampler: BasicSampler


def fill_replay(
    stack: ExitStack,
    make_env: Any,
    agent: Agent,
    example: ArrayDict,
    *,
    kind: type[ReplayBuffer] = ReplayBuffer,
    n_batches: int = 3,
    **replay: Any,
) -> World[Agent]:
    """Let an agent act for some batches, which a new replay buffer takes; the stack closes all."""
    samples = build_sample_tree(example, agent, batch_shape=(T, B), full_size=4 * T)
    buffer = kind(samples, rng=np.random.default_rng(0), **replay)
    cages = build_cages(make_env, B, n_workers="serial", seed=0)
    sampler = BasicSampler(cages, agent, samples, replay=buffer, check=True)
    for cage in cages:
        stack.enter_context(cage)
    stack.callback(samples.close)
    stack.callback(buffer.close)
    for _ in range(n_batches):
        sampler.collect_batch()
    return World(agent, buffer, sampler)


def weights(model: nn.Module) -> Tensor:
    """Return all parameters as one vector."""
    return torch.cat([each.detach().flatten() for each in model.parameters()])
