"""Breakout in AtariVectorEnv, and two ways to act in it: a loop by hand and AlternatingSampler."""

import os
import warnings
from collections.abc import Callable

import numpy as np
import torch
from ale_py import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from parllel import ArrayDict
from parllel.cages import VectorCage
from parllel.patterns import build_sample_tree, example_of
from parllel.samplers import AlternatingSampler
from parllel.torch.agents import CategoricalPgAgent
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic, NatureCnn

GAME, N_ACTIONS = "breakout", 4
STACK = (4, 84, 84)  # uint8; a step is four frames of the game
N_CORES = os.cpu_count() or 1
SEED = 0
OURS = "parllel"  # as figures color what begins with it


def make_env(n_envs: int, n_threads: int, first_core: int = -1) -> AtariVectorEnv:
    return AtariVectorEnv(
        GAME,
        n_envs,
        num_threads=max(n_threads, 1),
        thread_affinity_offset=first_core if N_CORES > 1 else -1,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )


def make_cages(n_envs: int, n_threads: int, first_core: int = -1) -> list[VectorCage]:
    """Return two halves that take turns, each with a number of threads of its own."""
    kwargs = {"n_envs": n_envs // 2, "n_threads": n_threads, "first_core": first_core}
    return [VectorCage(make_env, kwargs, seed=seed) for seed in (SEED, SEED + 1)]


def example_step(cage: VectorCage, storage: str | None = "local") -> ArrayDict:
    """Return an example without infos: no contestant keeps them."""
    example = example_of(cage, storage=storage)
    example["env_info"] = ArrayDict({})
    warnings.filterwarnings("ignore", message="env_info: the tree has no branch")
    return example


def build_model(*, channels_last: bool = False) -> ActorCritic:
    torch.manual_seed(SEED)
    return ActorCritic(NatureCnn(STACK, channels_last=channels_last), N_ACTIONS)


def with_torch_threads(n_threads: int, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        torch.set_num_threads(n_threads)
        call()

    return run


def on_first_core(call: Callable[[], object]) -> Callable[[], object]:
    """Keep this thread on the first of its cores during a call, where the system can do that."""

    def run() -> None:
        if not hasattr(os, "sched_setaffinity"):
            call()
            return
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            call()
        finally:
            os.sched_setaffinity(0, cores)

    return run


def alternating(
    T: int,
    B: int,
    *,
    n_threads: int = N_CORES - 1,
    first_core: int = -1,
    channels_last: bool = False,
) -> AlternatingSampler:
    cages = make_cages(B, n_threads, first_core)
    example = example_step(cages[0])
    model = build_model(channels_last=channels_last)
    agent = CategoricalPgAgent(model, Categorical(N_ACTIONS), example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(T, B))
    return AlternatingSampler(cages, agent, samples)


class ByHand:
    """The plainest loop: the same network, Gumbel noise, preallocated NumPy."""

    def __init__(
        self, T: int, B: int, *, first_core: int = -1, channels_last: bool = False
    ) -> None:
        self.env = make_env(B, N_CORES, first_core)
        self.model = build_model(channels_last=channels_last)
        self.observation = np.zeros((T + 1, B, *STACK), np.uint8)
        self.action = np.zeros((T, B), np.int64)
        self.reward = np.zeros((T, B), np.float32)
        self.terminated = np.zeros((T, B), bool)
        self.truncated = np.zeros((T, B), bool)
        self.value = np.zeros((T + 1, B), np.float32)
        self.log_prob = np.zeros((T, B), np.float32)
        self.observation[T], _ = self.env.reset(seed=SEED)

    @torch.inference_mode()
    def collect_batch(self) -> None:
        T = len(self.action)
        self.observation[0] = self.observation[T]
        for t in range(T):
            outputs = self.model(torch.from_numpy(self.observation[t]))
            log_probs = outputs.dist_params.logits.log_softmax(-1)
            noise = torch.empty_like(log_probs).exponential_().log_()
            action = (log_probs - noise).argmax(-1)
            self.action[t] = action.numpy()
            self.value[t] = outputs.value.numpy()
            self.log_prob[t] = log_probs.gather(-1, action[:, None])[:, 0].numpy()
            observation, reward, terminated, truncated, _ = self.env.step(self.action[t])
            self.observation[t + 1] = observation
            self.reward[t] = reward
            self.terminated[t] = terminated
            self.truncated[t] = truncated
        self.value[T] = self.model(torch.from_numpy(self.observation[T])).value.numpy()
