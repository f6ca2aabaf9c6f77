"""Steps of a RayCage's actors against worker processes and this process, by the time of a step."""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
from bench_cages import bind, step_cages
from matplotlib.figure import Figure

from parllel.cages import RayCage
from parllel.patterns import build_cages
from support.idle_envs import Idle
from support.report import Report, parse_out
from support.timing import interleave, ratio

B = 8
N_WORKERS = 2
STEPS_MS = (0.1, 1.0, 3.0, 10.0)
IMAGE = (256, 256, 3)
REPEATS = 21
SAMPLE_S = 0.02
DEARER = 1.1  # "pays": a step costs no more than this much of one with the other cage

SERIAL = "SerialCage"
WORKERS = f"ProcessCage, {N_WORKERS} workers"
ACTORS = f"RayCage, {N_WORKERS} actors"
NAMES = (SERIAL, WORKERS, ACTORS)


class Waiting(Idle):
    """Wait in each step, as for a simulator on another machine: this one's processors are free."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self._wait_s = wait_s

    def step(self, action: Any) -> Any:
        time.sleep(self._wait_s)
        return super().step(action)


class Camera(Idle):
    """Show an image, and do nothing else."""

    observation_space = gym.spaces.Box(0, 255, IMAGE, np.uint8)

    def __init__(self) -> None:
        super().__init__()
        self._observation = np.zeros(IMAGE, np.uint8)


def main(out: Path, repeats: int = REPEATS, steps_ms: Sequence[float] = STEPS_MS) -> None:
    report = Report(
        "ray",
        "Stepping environments in Ray actors",
        [
            f"{B} environments, in this process, or by {N_WORKERS} workers or actors beside it.",
            "Those of a given time wait in each step, as for simulators on other processors.",
            f"{repeats} interleaved rounds; ratios are medians over them.",
        ],
    )
    with cluster():
        overheads = {}
        for heading, make_env in (
            (f"a step of {B} environments that do nothing", Idle),
            (f"a step of {B} environments that show {IMAGE[0]} x {IMAGE[1]} images", Camera),
        ):
            seconds = step_all(make_env, repeats)
            report.add_table(heading, seconds, references=[WORKERS])
            overheads.setdefault("idle", seconds)
        ratios: dict[str, list[float]] = {name: [] for name in NAMES}
        for step_ms in steps_ms:
            seconds = step_all(partial(Waiting, step_ms / 1e3), repeats)
            heading = f"a step of {B} environments of {step_ms:g} ms each"
            report.add_table(heading, seconds, references=[SERIAL, WORKERS])
            for name in NAMES:
                ratios[name].append(ratio(seconds, name, SERIAL))
            for other, limit in ((SERIAL, 1.0), (WORKERS, DEARER)):
                claim = f"environments of {step_ms:g} ms: time of {ACTORS} / time of {other}"
                report.add_target(claim, ratio(seconds, ACTORS, other), limit)
    for name, step_us in pays_from(overheads["idle"]).items():
        print(f"by its overhead alone, {ACTORS} pay against {name} from {step_us:.0f} us on")
    report.write(out)
    draw(ratios, steps_ms, out / "ray_by_step_time_cpu.png")


def pays_from(idle: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return from which time of a step on actors pay, in us, by what steps cost that do nothing.

    With n workers that run at the same time, B environments take B / n times the step of one.
    """
    cost = {name: statistics.median(samples) * 1e6 for name, samples in idle.items()}
    each = B / N_WORKERS  # steps one after the other
    return {
        SERIAL: max(0.0, (cost[ACTORS] - cost[SERIAL]) / (B - each)),
        WORKERS: max(0.0, (cost[ACTORS] - DEARER * cost[WORKERS]) / (each * (DEARER - 1))),
    }


def draw(ratios: Mapping[str, Sequence[float]], steps_ms: Sequence[float], path: Path) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in NAMES:
        speeds = [1 / each for each in ratios[name]]
        axes.plot(steps_ms, speeds, marker="o", label=name)
        end = steps_ms[-1], speeds[-1]
        axes.annotate(f"{speeds[-1]:.2f}", end, (-6, 6), textcoords="offset points", ha="right")
    axes.margins(y=0.1)
    axes.set_xscale("log")
    axes.set_xticks(steps_ms, [f"{each:g}" for each in steps_ms])
    axes.minorticks_off()
    axes.set_xlabel("ms that a step of one environment takes")
    axes.set_ylabel(f"speed, times {SERIAL}")
    axes.set_title(f"{B} environments, {N_WORKERS} workers or actors", loc="left")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    print(f"and {path.name}")


# Contestants


@contextmanager
def cluster() -> Iterator[None]:
    ray.init(
        num_cpus=N_WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


def step_all(make_env: Callable[[], gym.Env], repeats: int) -> dict[str, list[float]]:
    """Return what a step of all environments took with each kind of cage, in seconds."""
    with ExitStack() as stack:
        steps = {name: stack.enter_context(step(name, make_env)) for name in NAMES}
        return interleave(steps, repeats=repeats, sample_s=SAMPLE_S)


@contextmanager
def step(name: str, make_env: Callable[[], gym.Env]) -> Iterator[Callable[[], object]]:
    kind: Any = RayCage if name == ACTORS else None
    n_workers = 0 if name == SERIAL else N_WORKERS
    cages = build_cages(make_env, B, n_workers=n_workers, worker_cage=kind, seed=0)
    yield partial(step_cages, cages, bind(cages))
    for cage in cages:
        cage.close()


if __name__ == "__main__":
    main(parse_out(__doc__))
