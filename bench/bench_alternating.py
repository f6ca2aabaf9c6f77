"""Steps per second of AlternatingSampler on AtariVectorEnv with a Nature CNN, against a loop."""

import statistics
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from support.atari import (
    GAME,
    N_CORES,
    SEED,
    ByHand,
    alternating,
    build_model,
    make_env,
    with_torch_threads,
)
from support.report import Report, parse_out
from support.timing import interleave, ratio, take_turns

T, B = 128, 8
REPEATS = 9
PARTS_REPEATS = 101
LEAST_GAIN = 1.25  # in steps per second

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
        OURS: with_torch_threads(1, alternating(T, B).collect_batch),
        OURS + PINNED: with_torch_threads(1, alternating(T, B, first_core=1).collect_batch),
    }
    for n in torch_threads():
        name = f"by hand, torch threads: {n}"
        contestants[name] = with_torch_threads(n, ByHand(T, B).collect_batch)
        contestants[name + PINNED] = with_torch_threads(n, ByHand(T, B, first_core=0).collect_batch)
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


def stepping(n_envs: int, n_threads: int) -> Callable[[], object]:
    env = make_env(n_envs, n_threads)
    env.reset(seed=SEED)
    rng = np.random.default_rng(SEED)
    n_actions = env.single_action_space.n
    return lambda: env.step(rng.integers(0, n_actions, n_envs))


def acting(n_rows: int) -> Callable[[], object]:
    env = make_env(n_rows, 1)
    observation = torch.from_numpy(env.reset(seed=SEED)[0])
    model = build_model()

    @torch.inference_mode()
    def act() -> None:
        model(observation)

    return act


if __name__ == "__main__":
    main(parse_out(__doc__))
