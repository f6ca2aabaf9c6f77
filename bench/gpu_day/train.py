"""Short trainings with samples in a GPU's memory, and what a time step with a model costs there.

    python bench/gpu_day/train.py --out FOLDER [--simulated]

It writes train.json, and profile.txt with all that torch's profiler saw of one batch.
"""

import argparse
import copy
import json
import sys
import time
from collections import Counter
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

# A program finds its own folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parllel import cuda
from parllel.cages import VectorCage
from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree, example_of
from parllel.runners import RLRunner
from parllel.samplers import BasicSampler
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.agents import CategoricalPgAgent
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic, Mlp, NatureCnn
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage
from support.still_envs import N_ACTIONS, StepSize, StillEnvs

CARTPOLE_T, CARTPOLE_B = 64, 16
N_CARTPOLE_STEPS = 40_960
LEAST_RETURN = 60  # of the last episodes; actions at random get about 22
PIXELS, PIXELS_T = StepSize(32, (4, 84, 84)), 64
N_BATCHES = 4  # that are timed
MOST_ROWS = 60  # of the profile

Facts = dict[str, Any]  # what JSON can hold


def make_cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1", disable_env_checker=True)


def train_cartpole(storage: str, n_steps: int) -> Facts:
    """Train PPO on CartPole; raise where it has learned nothing."""
    torch.manual_seed(0)
    begun = time.perf_counter()
    with ExitStack() as stack:
        cages = build_cages(make_cartpole, CARTPOLE_B, seed=0, n_workers=0)
        example = build_example(make_cartpole, storage=storage)
        model = ActorCritic(Mlp(4, [64, 64]), 2).to(example["reward"].to_torch().device)
        agent = CategoricalPgAgent(model, Categorical(2), example["observation"])
        samples = build_sample_tree(example, agent, batch_shape=(CARTPOLE_T, CARTPOLE_B))
        sampler = BasicSampler(cages, agent, samples)
        for each in (example, samples, sampler, *cages):
            stack.callback(each.close)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, eps=1e-5)
        settings = PPOSettings(n_epochs=10, n_minibatches=4)
        algorithm = PPO(agent, optimizer, settings, rng=np.random.default_rng(0))
        transforms = [EstimateAdvantage(discount=0.98, gae_lambda=0.9), NormalizeAdvantage()]
        with Metrics() as metrics:
            runner = RLRunner(sampler, algorithm, metrics, n_steps=n_steps, transforms=transforms)
            summary = runner.run()
    if n_steps >= N_CARTPOLE_STEPS and summary.mean_return < LEAST_RETURN:
        raise RuntimeError(
            f"{storage}: a mean return of {summary.mean_return:.1f} after {n_steps:,} steps,"
            f" expected at least {LEAST_RETURN}"
        )
    return {
        "seconds": time.perf_counter() - begun,
        "sample_s": summary.sample_s,
        "learn_s": summary.learn_s,
        "mean_return": summary.mean_return,
    }


def step_pixels(size: StepSize, T: int, folder: Path) -> Facts:
    """Let a Nature CNN act in environments that cost nothing; count what a time step takes.

    Args:
        size: environments, and stacks that they show.
        T: time steps of a batch.
        folder: where the profile of a batch goes.
    """
    with ExitStack() as stack:
        cage = stack.enter_context(VectorCage(StillEnvs, {"size": size}, seed=0))
        example = example_of(cage, storage="device")
        model = ActorCritic(NatureCnn(size.shape), N_ACTIONS)
        model.to(example["reward"].to_torch().device)
        agent = CategoricalPgAgent(model, Categorical(N_ACTIONS), example["observation"])
        samples = build_sample_tree(example, agent, batch_shape=(T, size.n_envs), frames="first")
        sampler = BasicSampler([cage], agent, samples)
        for each in (example, samples, sampler):
            stack.callback(each.close)
        sampler.collect_batch()
        cuda.synchronize()
        before, begun = copy.copy(cuda.counters), time.perf_counter()
        for _ in range(N_BATCHES):
            sampler.collect_batch()
        cuda.synchronize()
        spent_s, n_steps = time.perf_counter() - begun, N_BATCHES * T
        counted = cuda.counters.since(before).as_dict()
        facts: Facts = {
            "environment steps a second": n_steps * size.n_envs / spent_s,
            "us a time step": 1e6 * spent_s / n_steps,
            "parllel's work a time step": {what: n / n_steps for what, n in counted.items() if n},
        }
        return facts | profile_batch(sampler, folder)


def profile_batch(sampler: Any, folder: Path) -> Facts:  # Any: a Sampler, as torch's profiler is
    """Return how often a time step calls CUDA, the agent included; write the whole profile."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():  # not in a simulation
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        sampler.collect_batch()
    T = sampler.batch_T
    names = Counter(
        event.name for event in recorded.events() if event.name.startswith(("cuda", "cuLaunch"))
    )
    averages = recorded.key_averages()
    table = averages.table(sort_by="device_time_total", row_limit=MOST_ROWS)
    (folder / "profile.txt").write_text(table)
    return {
        "CUDA calls a time step, agent included": {
            name: n / T for name, n in names.most_common(20)
        },
        "parllel's kernels a time step": {
            each.key: {"n": each.count / T, "us": each.device_time_total / T}
            for each in averages
            if each.key in ("rows", "frames")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train with samples in a GPU's memory.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--simulated", action="store_true", help="rehearse it without a GPU")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts: Facts = {"is_simulated": options.simulated}
    n_steps = CARTPOLE_T * CARTPOLE_B if options.simulated else N_CARTPOLE_STEPS
    size = StepSize(2, PIXELS.shape) if options.simulated else PIXELS
    T = 4 if options.simulated else PIXELS_T
    with simulated_cuda("eager") if options.simulated else nullcontext():
        parts = {
            "CartPole, samples in local memory": lambda: train_cartpole("local", n_steps),
            "CartPole, samples on the device": lambda: train_cartpole("device", n_steps),
            f"pixels, {size}": lambda: step_pixels(size, T, options.out),
        }
        for name, part in parts.items():
            facts[name] = part()
            print(name, json.dumps(facts[name], indent=1), flush=True)
            (options.out / "train.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
