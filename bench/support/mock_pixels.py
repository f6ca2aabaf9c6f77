"""Environments that show random frames, and samplers that let a Nature CNN act in them."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler
from parllel.torch.agents import CategoricalPgAgent
from parllel.torch.distributions import Categorical
from support.atari import N_ACTIONS, N_CORES, OURS, SEED, STACK, build_model, with_torch_threads
from support.timing import timed

EPISODE_STEPS = 200
N_FRAMES = 16


def random_frames() -> np.ndarray:
    return np.random.default_rng(SEED).integers(0, 256, (N_FRAMES, *STACK), np.uint8)


class MockPixels(gym.Env):
    """Show frames that were drawn before; a step takes no time, or sleeps."""

    observation_space = gym.spaces.Box(0, 255, STACK, np.uint8)
    action_space = gym.spaces.Discrete(N_ACTIONS)

    def __init__(self, step_s: float = 0.0) -> None:
        self._frames, self._step_s, self._n_steps = random_frames(), step_s, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._n_steps = 0
        return self._frames[0], {}

    def step(self, action: Any) -> Any:
        if self._step_s:
            time.sleep(self._step_s)
        self._n_steps += 1
        is_last = self._n_steps == EPISODE_STEPS
        return self._frames[self._n_steps % N_FRAMES], 1.0, is_last, False, {}


@contextmanager
def our_mock_samplers(T: int, B: int, step_s: float) -> Iterator[dict[str, Callable[[], float]]]:
    """Give a function for each sampler, which returns its seconds for a batch of T steps.

    Environments are in this process, or where steps sleep, in a worker for each of them. There, two
    halves of them may take turns.
    """
    make_env = partial(MockPixels, step_s)
    kinds = {OURS: BasicSampler}
    if step_s:
        kinds[f"{OURS}, taking turns"] = AlternatingSampler
    example = build_example(make_env, storage="shared" if step_s else "local")
    model = build_model(channels_last=True)
    agent = CategoricalPgAgent(model, Categorical(N_ACTIONS), example["observation"])
    with ExitStack() as stack:
        calls = {}
        for name, sampler_class in kinds.items():
            cages = build_cages(make_env, B, seed=SEED, n_workers=B if step_s else 0)
            samples = build_sample_tree(example, agent, batch_shape=(T, B))
            sampler = sampler_class(cages, agent, samples)
            for each in (samples, sampler, *cages):
                stack.callback(each.close)
            calls[name] = timed(with_torch_threads(N_CORES, sampler.collect_batch))
        yield calls
