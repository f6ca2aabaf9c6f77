"""Learners of Breakout on a GPU: steps per second, launches and copies, utilization."""

import copy
import statistics
import timeit
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from parllel import cuda
from support.gpu_state import read_gpu
from support.pixel_learners import Learner
from support.report import Report

# Steps of agents per second, of other programs on other machines: what is of the same order.
PUBLISHED = (
    "Published, with learning: PQN on Atari in JAX on an A40, 13,900 steps/s; LeanRL's PPO in",
    "torch on an H100, 6,800; a camera in Isaac on an RTX 4090, 32,000 (stepping alone 50,000).",
)


class Work(NamedTuple):
    """What was measured of a learner, with one sample for each round."""

    seconds: list[float]
    launches: float
    copies: float
    utilization: float | None


def race_device(
    report: Report,
    learners: dict[str, Callable[[], Learner]],
    n_steps: dict[str, int],
    repeats: int,
) -> None:
    """Add a table for each learner: of sampling alone, and of sampling and learning.

    Args:
        learners: name -> makes a learner.
        n_steps: name -> environment steps of a batch.
        repeats: batches that are timed.
    """
    for name, make in learners.items():
        learner = make()
        calls = {"sampling": [learner.sample], "and learning": [learner.sample, learner.learn]}
        try:
            works = {what: measure(call, n_steps[name], repeats) for what, call in calls.items()}
        finally:
            learner.close()
        columns = {
            "steps/s": {
                what: n_steps[name] / statistics.median(work.seconds)
                for what, work in works.items()
            },
            "launches": {what: work.launches for what, work in works.items()},
            "copies": {what: work.copies for what, work in works.items()},
            "busy": {
                what: work.utilization
                for what, work in works.items()
                if work.utilization is not None
            },
        }
        seconds = {what: work.seconds for what, work in works.items()}
        report.add_table(name, seconds, columns=columns, gpu=read_gpu())


def measure(calls: list[Callable[[], object]], n_steps: int, repeats: int) -> Work:
    """Time calls that follow each other; count what parllel launched and copied for each step."""

    def run() -> None:
        for call in calls:
            call()
        cuda.synchronize()

    run()  # loads modules and fills pools
    before = copy.copy(cuda.counters)
    with closing(cuda.GpuUsage()) as usage:
        seconds = [timeit.timeit(run, number=1) for _ in range(repeats)]
        busy = usage.read().get("gpu/utilization")
    counted = cuda.counters.since(before)
    n_copies = counted.copies_to_device + counted.copies_to_host
    n_all = repeats * n_steps
    return Work(seconds, counted.launches / n_all, n_copies / n_all, busy)
