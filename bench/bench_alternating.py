"""Steps per second of AlternatingSampler on AtariVectorEnv with a Nature CNN, against a loop."""

import os
import statistics
import timeit
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ale_py import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from parllel import ArrayDict
from parllel.cages import VectorCage
from parllel.patterns import build_sample_tree, example_of
from parllel.samplers import AlternatingSampler
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.distributions import Categorical, DistParams
from support.report import Report, parse_out
from support.timing import interleave, ratio, take_turns

GAME = "breakout"
T, B = 128, 8
REPEATS = 9
PARTS_REPEATS = 101
N_CORES = os.cpu_count() or 1
LEAST_GAIN = 1.25  # in steps per second
SEED = 0

OURS, PINNED = "AlternatingSampler", ", pinned"


def main(out: Path, repeats: int = REPEATS, parts_repeats: int = PARTS_REPEATS) -> None:
    report = Report(
        "alternating",
        f"Sampling {GAME} with a Nature CNN on the CPU: {B} environments, {T} steps",
        [
            f"{repeats} interleaved rounds; ratios are medians over the rounds. The loop by hand",
            f"has one AtariVectorEnv of {B}, with a thread for each of {N_CORES} cores;",
            f"{OURS} has two of {B // 2}, with a thread less, and one torch thread.",
            "Pinned: each thread of environments stays on a core, those of the sampler not on the",
            "first one. The target is set by the fastest of the loops by hand.",
        ],
    )
    n_threads = torch.get_num_threads()
    try:
        race(report, repeats)
        measure_parts(report, parts_repeats)
    finally:
        torch.set_num_threads(n_threads)
    report.write(out)


def race(report: Report, repeats: int) -> None:
    contestants = {
        OURS: with_torch_threads(1, alternating()),
        OURS + PINNED: with_torch_threads(1, alternating(first_core=1)),
    }
    for n in torch_threads():
        name = f"by hand, torch threads: {n}"
        contestants[name] = with_torch_threads(n, ByHand().collect_batch)
        contestants[name + PINNED] = with_torch_threads(n, ByHand(first_core=0).collect_batch)
    for call in contestants.values():  # once is enough, of calls that are so long
        call()
    seconds = take_turns(
        contestants, lambda name: timeit.timeit(contestants[name], number=1), repeats=repeats
    )
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    rates = {name: T * B / median for name, median in medians.items()}
    best = min((name for name in medians if OURS not in name), key=lambda name: medians[name])
    report.add_table("a batch", seconds, references=[best], columns={"steps/s": rates})
    for name in (OURS, OURS + PINNED):
        times = ratio(seconds, name, best)
        report.add_target(f"{name}: time / time {best}", times, 1 / LEAST_GAIN)


def measure_parts(report: Report, repeats: int) -> None:
    """Time what a step is made of, each part alone: no loop takes turns faster than these."""
    contestants = {
        f"step of {B} environments, threads: {N_CORES}": stepping(B, N_CORES),
        f"step of {B // 2} environments, threads: {N_CORES - 1 or 1}": stepping(
            B // 2, N_CORES - 1
        ),
    }
    for n_rows in (B, B // 2):
        for n in torch_threads():
            name = f"network, {n_rows} rows, torch threads: {n}"
            contestants[name] = with_torch_threads(n, acting(n_rows))
    report.add_table("parts of a step", interleave(contestants, repeats=repeats))


def torch_threads() -> list[int]:
    return sorted({1, N_CORES})


def with_torch_threads(n_threads: int, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        torch.set_num_threads(n_threads)
        call()

    return run


def make_env(n_envs: int, n_threads: int, first_core: int = -1) -> AtariVectorEnv:
    return AtariVectorEnv(
        GAME,
        n_envs,
        num_threads=max(n_threads, 1),
        thread_affinity_offset=first_core if N_CORES > 1 else -1,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )


class NatureCNN(nn.Module):
    """Three convolutions and a layer of 512 units for stacks of frames, uint8 [N, 4, 84, 84].

    Source: Mnih et al. 2015, Nature 518, "Methods".
    """

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 512),
            nn.ReLU(),
        )
        self.logits = nn.Linear(512, n_actions)
        self.value = nn.Linear(512, 1)

    def forward(self, observation: Tensor) -> ModelOutputs:
        features = self.body(observation.float() / 255)
        logits, value = self.logits(features), self.value(features)
        return ModelOutputs(DistParams(logits=logits), value.squeeze(-1))


def build_model(n_actions: int) -> NatureCNN:
    torch.manual_seed(SEED)
    return NatureCNN(n_actions)


def alternating(first_core: int = -1) -> Callable[[], object]:
    kwargs = {"n_envs": B // 2, "n_threads": N_CORES - 1, "first_core": first_core}
    cages = [VectorCage(make_env, kwargs, seed=seed) for seed in (SEED, SEED + 1)]
    example = example_of(cages[0], storage="local")
    example["env_info"] = ArrayDict({})  # no contestant keeps infos
    warnings.filterwarnings("ignore", message="env_info: the tree has no branch")
    n_actions = int(cages[0].action_space.n)
    model = build_model(n_actions)
    agent = CategoricalPgAgent(model, Categorical(n_actions), example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(T, B))
    return AlternatingSampler(cages, agent, samples).collect_batch


class ByHand:
    """The plainest loop: the same network, Gumbel noise, preallocated NumPy."""

    def __init__(self, first_core: int = -1) -> None:
        self.env = make_env(B, N_CORES, first_core)
        self.model = build_model(int(self.env.single_action_space.n))
        self.observation = np.zeros((T + 1, B, 4, 84, 84), np.uint8)
        self.action = np.zeros((T, B), np.int64)
        self.reward = np.zeros((T, B), np.float32)
        self.terminated = np.zeros((T, B), bool)
        self.truncated = np.zeros((T, B), bool)
        self.value = np.zeros((T + 1, B), np.float32)
        self.log_prob = np.zeros((T, B), np.float32)
        self.observation[T], _ = self.env.reset(seed=SEED)

    @torch.inference_mode()
    def collect_batch(self) -> None:
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


def stepping(n_envs: int, n_threads: int) -> Callable[[], object]:
    env = make_env(n_envs, n_threads)
    env.reset(seed=SEED)
    rng = np.random.default_rng(SEED)
    n_actions = env.single_action_space.n
    return lambda: env.step(rng.integers(0, n_actions, n_envs))


def acting(n_rows: int) -> Callable[[], object]:
    env = make_env(n_rows, 1)
    observation = torch.from_numpy(env.reset(seed=SEED)[0])
    model = build_model(int(env.single_action_space.n))

    @torch.inference_mode()
    def act() -> None:
        model(observation)

    return act


if __name__ == "__main__":
    main(parse_out(__doc__))
