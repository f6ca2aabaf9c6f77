"""From Breakout's pixels to updates: acting, PPO and DQN against others, each part timed apart."""

import importlib.util
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch

from parllel import cuda
from support.atari import (
    N_ACTIONS,
    N_CORES,
    OURS,
    SEED,
    ByHand,
    alternating,
    on_first_core,
    with_torch_threads,
)
from support.gpu_state import read_gpu
from support.mock_pixels import our_mock_samplers
from support.pixel_learners import DqnSize, Learner, PpoSize, our_dqn, our_ppo
from support.pixels_on_device import PUBLISHED, race_device
from support.report import Report, parse_out
from support.sb3_learners import VECTOR_ENVS, their_dqn, their_ppo
from support.timing import interleave, ratio, take_turns, timed

PPO_SIZE = PpoSize(T=128, B=8, n_minibatches=4)
DQN_SIZE = DqnSize(T=4, B=8, batch_size=32, steps_per_update=4, n_kept=8_192)
DEVICE_PPO = PpoSize(T=128, B=64, n_minibatches=4)
DEVICE_DQN = DqnSize(T=4, B=64, batch_size=256, steps_per_update=32, n_kept=131_072)
MOCK_T = 32
MOCK_STEPS_S = (0.0, 0.001)  # the second one is that of torchrl's own bench
ACTING_REPEATS, PPO_REPEATS, DQN_REPEATS, MOCK_REPEATS = 11, 7, 31, 9
DEVICE_REPEATS = 20

MOST_OF_LOOP = 0.75  # of the time of the fastest loop by hand
MOST_OF_PPO, MOST_OF_DQN = 0.75, 0.85  # of the time of stable-baselines3
MOST_OF_UPDATE = 0.03  # for drawing and gathering a minibatch
MOST_OF_TORCHRL = 0.5

THEIRS, HAND = "stable-baselines3", "by hand"
PLAIN = "parllel, plain memory format"

FAIRNESS = (
    "Contestants take turns; ratios are medians over the rounds. All see the frames that",
    "AtariVectorEnv scales and stacks, and have the network of DQN and the same numbers. Loops by",
    "hand and parllel have it in torch's memory format channels_last, and parllel has a fused",
    f"Adam; '{PLAIN}' and stable-baselines3, which has no such option,",
    "have the usual format, and stable-baselines3 the Adam that it has by itself. It acts in the",
    "vector environment that is fastest for it, and has all cores for torch. parllel samples with",
    "two VectorCages that take turns, each with a thread less than cores, beside one torch thread,",
    "and learns with all cores.",
)


def main(folder: Path) -> None:
    n_threads = torch.get_num_threads()
    try:
        measure_device(folder) if cuda.is_available() else measure(folder)
    finally:
        torch.set_num_threads(n_threads)


def measure(folder: Path) -> None:
    title = f"Breakout and mock frames, {PPO_SIZE.B} environments, a Nature CNN, {N_CORES} cores"
    report = Report("pixels", title, FAIRNESS)
    race_acting(report)
    fastest = race_vector_envs(report)
    race_ppo(report, fastest)
    race_dqn(report, fastest)
    race_mocks(report)
    report.write(folder)


# Acting


def race_acting(report: Report) -> None:
    """AlternatingSampler against loops by hand; pinned threads stay on a core of their own.

    Where environments are pinned, AlternatingSampler's agent stays on the core that they leave.
    """
    T, B = PPO_SIZE.T, PPO_SIZE.B
    contestants = {}
    for kind, ours_on, by_hand_on in (("", -1, -1), (", pinned", 1, 0)):
        sampler = alternating(T, B, first_core=ours_on, channels_last=True)
        collect = with_torch_threads(1, sampler.collect_batch)
        contestants[OURS + kind] = timed(on_first_core(collect) if kind else collect)
        loop = ByHand(T, B, first_core=by_hand_on, channels_last=True)
        for n in sorted({1, N_CORES}):
            name = f"{HAND}, torch threads: {n}{kind}"
            contestants[name] = timed(with_torch_threads(n, loop.collect_batch))
    seconds = race(contestants, ACTING_REPEATS)
    best = fastest_of({name: seconds[name] for name in seconds if name.startswith(HAND)})
    columns = {"steps/s": rates(seconds, T * B)}
    report.add_table(f"acting, {T} steps", seconds, references=[best], columns=columns)
    ours = fastest_of({name: seconds[name] for name in seconds if name.startswith(OURS)})
    report.add_target(f"{ours}: time / time {best}", ratio(seconds, ours, best), MOST_OF_LOOP)


def race_vector_envs(report: Report) -> str:
    """Step the environments that stable-baselines3 may act in; return the name of the fastest."""
    B = PPO_SIZE.B
    action = np.arange(B) % N_ACTIONS
    with ExitStack() as stack:
        contestants = {}
        for name, make in VECTOR_ENVS.items():
            envs = make(B)
            stack.callback(envs.close)
            envs.seed(SEED)
            envs.reset()
            contestants[name] = partial(envs.step, action)
        seconds = interleave(contestants, repeats=DQN_REPEATS)
    report.add_table(f"a step of {B} environments for {THEIRS}", seconds)
    return fastest_of(seconds)


# Learning


def race_ppo(report: Report, fastest: str) -> None:
    size = PPO_SIZE
    learners = {
        OURS: our_ppo(size),
        PLAIN: our_ppo(size, channels_last=False),
        THEIRS: their_ppo(size, VECTOR_ENVS[fastest](size.B)),
    }
    whole = race_learners(
        report, f"PPO, {size.T} steps of {size.B} environments", learners, PPO_REPEATS
    )
    report.add_target(
        f"PPO iteration: time / time of {THEIRS}", ratio(whole, OURS, THEIRS), MOST_OF_PPO
    )


def race_dqn(report: Report, fastest: str) -> None:
    size = DQN_SIZE
    learners = {
        OURS: our_dqn(size),
        PLAIN: our_dqn(size, channels_last=False),
        THEIRS: their_dqn(size, VECTOR_ENVS[fastest](size.B)),
    }
    for learner in learners.values():
        for _ in range(size.n_kept // (size.T * size.B)):
            learner.sample()  # until the buffer is full
    heading = f"DQN, {size.n_updates} updates of {size.batch_size} for {size.T * size.B} steps"
    whole = race_learners(report, heading, learners, DQN_REPEATS, size.n_updates)
    report.add_target(f"DQN: time / time of {THEIRS}", ratio(whole, OURS, THEIRS), MOST_OF_DQN)


def race_learners(
    report: Report,
    heading: str,
    learners: Mapping[str, Learner],
    repeats: int,
    n_updates: int = 1,
) -> dict[str, list[float]]:
    """Add a table for each part of an iteration, and one for the whole; return the whole's times.

    Args:
        n_updates: number of times that `learn` draws a minibatch, where learners do.
    """

    def time_parts(name: str) -> list[float]:
        learner = learners[name]
        parts = [learner.sample, learner.learn, *([learner.draw] if learner.draw else [])]
        return [timed(part)() for part in parts]

    with ExitStack() as stack:
        for name, learner in learners.items():
            stack.callback(learner.close)
            time_parts(name)  # compiles, and fills pools
        samples = take_turns(learners, time_parts, repeats=repeats)
    sampling, learning = (
        {name: [row[part] for row in samples[name]] for name in samples} for part in (0, 1)
    )
    report.add_table(f"{heading}: sampling", sampling, references=[THEIRS])
    report.add_table(f"{heading}: learning", learning, references=[THEIRS])
    whole = {name: [row[0] + row[1] for row in samples[name]] for name in samples}
    report.add_table(f"{heading}: all", whole, references=[THEIRS])
    if all(learner.draw for learner in learners.values()):
        drawing = {name: [row[2] for row in samples[name]] for name in samples}
        report.add_table(f"{heading}: drawing one minibatch", drawing, references=[THEIRS])
        both = {"draw": drawing[OURS], "update": [each / n_updates for each in learning[OURS]]}
        report.add_target(
            "DQN: time of drawing / time of an update",
            ratio(both, "draw", "update"),
            MOST_OF_UPDATE,
        )
    return whole


# torchrl


def race_mocks(report: Report) -> None:
    """Act in environments that cost nothing, or sleep; leave torchrl out where it is missing."""
    T, B = MOCK_T, PPO_SIZE.B
    has_torchrl = importlib.util.find_spec("torchrl") is not None
    if not has_torchrl:
        print("\ntorchrl is not installed: its collectors are left out; pip install torchrl")
    for step_s in MOCK_STEPS_S:
        with ExitStack() as stack:
            contestants = dict(stack.enter_context(our_mock_samplers(T, B, step_s)))
            if has_torchrl:
                from support.torchrl_collectors import collectors

                contestants |= stack.enter_context(collectors(T, B, step_s))
            seconds = race(contestants, MOCK_REPEATS)
        heading = f"mock frames, steps that take {step_s * 1e3:g} ms"
        theirs = {name: seconds[name] for name in seconds if not name.startswith(OURS)}
        best = [fastest_of(theirs)] if theirs else []
        columns = {"frames/s": rates(seconds, T * B)}
        report.add_table(heading, seconds, references=best, columns=columns)
        ours = fastest_of({name: seconds[name] for name in seconds if name not in theirs})
        for other in best:
            claim = f"{heading}: time of {ours} / time of {other}"
            report.add_target(claim, ratio(seconds, ours, other), MOST_OF_TORCHRL)


# On a GPU


def measure_device(folder: Path) -> None:
    report = Report(
        "pixels",
        f"Breakout, {DEVICE_PPO.B} environments, a Nature CNN, samples in the GPU's memory",
        [
            "Launches and copies are parllel's own for each environment step, torch's not among",
            "them; 'busy' is the share of time in which a kernel ran, as NVML tells it.",
            *PUBLISHED,
        ],
        gpu=read_gpu(),
    )
    ppo, dqn = DEVICE_PPO, DEVICE_DQN
    learners = {
        f"PPO, {ppo.T} steps": partial(our_ppo, ppo, storage="device"),
        f"DQN, {dqn.n_updates} updates of {dqn.batch_size} for {dqn.T} steps": partial(
            our_dqn, dqn, storage="device"
        ),
    }
    n_steps = dict(zip(learners, (ppo.T * ppo.B, dqn.T * dqn.B), strict=True))
    race_device(report, learners, n_steps, DEVICE_REPEATS)
    report.write(folder)


def race(contestants: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Take the seconds of long calls in turn."""
    for call in contestants.values():
        call()  # compiles, and fills pools
    return take_turns(contestants, lambda name: contestants[name](), repeats=repeats)


def fastest_of(seconds: Mapping[str, list[float]]) -> str:
    return min(seconds, key=lambda name: statistics.median(seconds[name]))


def rates(seconds: Mapping[str, list[float]], n_steps: int) -> dict[str, float]:
    return {name: n_steps / statistics.median(samples) for name, samples in seconds.items()}


if __name__ == "__main__":
    main(parse_out(__doc__))
