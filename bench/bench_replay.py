"""Time and memory of replay buffers: minibatches of transitions, drawn at random and gathered.

On a GPU: draws and gathers against a plain loop of torch. Without one: the CPU twin against others.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parllel import cuda
from parllel.replays import PrioritizedReplayBuffer
from support.device_report import DeviceReport
from support.device_timing import DeviceTimer
from support.replay_contestants import (
    BATCH_SIZE,
    FRAMES,
    GOALS,
    SMALL,
    STACKS,
    B,
    Contestant,
    build,
    make_in_hindsight,
    make_ours,
    make_stable_baselines3,
    make_take,
    take_of_stacks,
)
from support.replay_on_device import Race, race_replays
from support.report import Report, parse_out
from support.timing import interleave, ratio

REPEATS = 31
SAMPLE_S = 0.02  # of many minibatches: each reads other rows, and the cache holds none of them
SIZES = (10**4, 10**5, 10**6, 10**7)
RACE_SIZE = 10**6
N_FRAMES = 50_000
DEVICE_REPEATS = 101
DEVICE_RACES = (
    Race("small transitions", SMALL, 10**6, 256),
    Race("small transitions", SMALL, 10**6, 2_048),
    Race("frames", FRAMES, 50_000, 32),
    Race("frames", FRAMES, 50_000, 256),
)

OURS, THEIRS, TAKE = "parllel", "stable-baselines3", "numpy.take"
PRIORITIZED = "parllel, prioritized"
UPDATED = "parllel, prioritized and updated"
OURS_FRAMES = "parllel, frames"
PLAIN_GOALS, HINDSIGHT = "parllel, goals as they are", "parllel, hindsight"
MOST_BYTES = 7_200  # held for each transition of frames


def race_transitions(report: Report, n_rows: int, *, repeats: int) -> dict[str, Sequence[float]]:
    """Compare buffers of small transitions; return the times."""
    contestants = {
        OURS: build(make_ours, SMALL, n_rows),
        THEIRS: build(make_stable_baselines3, SMALL, n_rows),
        TAKE: build(make_take, SMALL, n_rows),
        PRIORITIZED: build(make_ours, SMALL, n_rows, PrioritizedReplayBuffer),
        UPDATED: build(make_ours, SMALL, n_rows, PrioritizedReplayBuffer),
    }
    check_observations(contestants[OURS])
    replay, error = contestants[UPDATED].buffer, torch.rand(BATCH_SIZE)

    def sample_and_update() -> None:
        replay.update_priorities(replay.sample(BATCH_SIZE)["index"], error)

    contestants[UPDATED] = contestants[UPDATED]._replace(sample=sample_and_update)
    report_promise(contestants[OURS])
    heading = f"{BATCH_SIZE} of {n_rows:,} transitions, float32 (4,)"
    return race(report, heading, contestants, n_rows, [OURS, TAKE], repeats=repeats)


def race_sizes(report: Report, sizes: Sequence[int], *, repeats: int) -> dict[str, Sequence[float]]:
    """Compare rings of different sizes: what a larger one costs is misses of the cache."""
    contestants = {}
    for n_rows in sizes:
        contestants[f"{OURS}, {n_rows:,}"] = build(make_ours, SMALL, n_rows)
        contestants[f"{TAKE}, {n_rows:,}"] = build(make_take, SMALL, n_rows)
    heading = f"{BATCH_SIZE} transitions, float32 (4,), of rings of different sizes"
    first = f"{OURS}, {sizes[0]:,}"
    return race(report, heading, contestants, None, [first], repeats=repeats)


def race_goals(report: Report, sizes: Sequence[int], *, repeats: int) -> dict[str, Sequence[float]]:
    """Compare draws of goals in hindsight with plain draws of the same tree, by size of the ring.

    Episodes have 100 steps on average: so many flags are read to draw a goal, up to the end.
    """
    contestants = {}
    for n_rows in sizes:
        contestants[f"{HINDSIGHT}, {n_rows:,}"] = build(make_ours, GOALS, n_rows, make_in_hindsight)
        contestants[f"{PLAIN_GOALS}, {n_rows:,}"] = build(make_ours, GOALS, n_rows)
    heading = f"{BATCH_SIZE} transitions with goals, three times float32 (4,)"
    first = f"{PLAIN_GOALS}, {sizes[0]:,}"
    return race(report, heading, contestants, None, [first], repeats=repeats)


def race_frames(report: Report, n_rows: int, *, repeats: int) -> dict[str, Sequence[float]]:
    """Compare gathers of stacks, of observations and the next ones, with the same bytes stored."""
    frames, stacks = build(make_ours, FRAMES, n_rows), build(make_ours, STACKS, n_rows)
    for contestant in (frames, stacks):
        check_observations(contestant)
    report_promise(frames)
    contestants = {
        OURS_FRAMES: frames,
        "parllel, stacks": stacks,
        TAKE: take_of_stacks(frames.buffer.samples["observation"]),
    }
    heading = f"{BATCH_SIZE} of {n_rows:,} transitions, uint8 (4, 84, 84)"
    seconds = race(report, heading, contestants, n_rows, [TAKE], repeats=repeats)
    print()
    claim = "frames: bytes held for each transition, all of the buffer"
    report.add_target(claim, promised_per_row(frames), MOST_BYTES)
    return seconds


def race(
    report: Report,
    heading: str,
    contestants: Mapping[str, Contestant],
    n_rows: int | None,
    references: Sequence[str],
    *,
    repeats: int,
) -> dict[str, Sequence[float]]:
    samplers: dict[str, Callable[[], Any]] = {
        name: contestant.sample for name, contestant in contestants.items()
    }
    seconds = interleave(samplers, repeats=repeats, sample_s=SAMPLE_S)
    columns = {
        "M rows/s": {name: BATCH_SIZE / np.median(each) / 1e6 for name, each in seconds.items()},
        "MB held": {name: each.nbytes / 1e6 for name, each in contestants.items()},
    }
    if n_rows is not None:
        columns["B/row"] = {name: each.nbytes / n_rows for name, each in contestants.items()}
    report.add_table(heading, seconds, references=references, columns=columns)
    return dict(seconds)


def check_observations(contestant: Contestant) -> None:
    """Refuse a contestant that gathers something else."""
    replay, minibatch = contestant.buffer, contestant.sample()
    observation = replay.samples["observation"]
    ring = observation.full[0 : observation.full_size + 1].to_ndarray()
    rows, columns = np.divmod(minibatch["index"].numpy(), B)
    rows %= observation.full_size
    assert (minibatch["observation"].numpy() == ring[rows, columns]).all()
    goes_on = ~minibatch["terminated"].numpy()
    following = minibatch["next_observation"].numpy()[goes_on]
    assert (following == ring[rows + 1, columns][goes_on]).all()


def report_promise(contestant: Contestant) -> None:
    """Print what a buffer says that it takes, beside what the process has grown by."""
    described = contestant.buffer.describe()
    print(f"\n{described}")
    print(f"promised {described.nbytes:,} bytes, measured {contestant.nbytes:,} of the process")


def promised_per_row(contestant: Contestant) -> float:
    buffer = contestant.buffer
    return float(buffer.describe().nbytes / (buffer.full_size * buffer.batch_B))


def measure_twins(
    folder: Path, *, race_size: int, sizes: Sequence[int], n_frames: int, repeats: int
) -> None:
    report = Report(
        "replay",
        "Minibatches of replay buffers, CPU twin, no GPU, one thread",
        [
            f"{repeats} interleaved rounds; ratios are medians over the rounds. Each minibatch is",
            f"of other rows. '{TAKE}' draws rows and gathers observations and next ones, stored",
            "apart, and actions, rewards and flags, into kept outputs with mode='clip'; of images",
            "it gathers both observations from one array of stacks, and nothing else. MB held is",
            "what the process has grown by while the buffer was made and filled.",
        ],
    )
    transitions = race_transitions(report, race_size, repeats=repeats)
    by_size = race_sizes(report, sizes, repeats=repeats)
    race_goals(report, sizes[-3:-1], repeats=repeats)
    frames = race_frames(report, n_frames, repeats=repeats)
    print()
    report.add_target(
        f"{race_size:,} transitions: time / time of stable-baselines3 (2 times its speed)",
        ratio(transitions, OURS, THEIRS),
        1 / 2,
    )
    report.add_target(
        f"{sizes[-1]:,} transitions: time / time with {sizes[-2]:,}",
        ratio(by_size, f"{OURS}, {sizes[-1]:,}", f"{OURS}, {sizes[-2]:,}"),
        1.5,
    )
    report.add_target(
        "frames: time / time of numpy.take (0.9 times its speed)",
        ratio(frames, OURS_FRAMES, TAKE),
        1 / 0.9,
    )
    report.write(folder)


def measure_device(
    folder: Path, races: Sequence[Race], *, timer: DeviceTimer, repeats: int
) -> None:
    report = DeviceReport(
        "replay",
        "Minibatches of replay buffers on a GPU: drawn and gathered there",
        [
            "'parllel' is a draw and one gather of all leaves. 'torch' draws row numbers, and",
            "gathers leaf by leaf into kept outputs, observations and next ones stored apart, of",
            "images whole stacks. By priority, torch sums up all priorities for each minibatch,",
            "and searches. It computes no returns of n steps, and keeps no final observations.",
            "'copy' is one copy of a minibatch's bytes on the device: the limit.",
        ],
        timer=timer,
        repeats=repeats,
    )
    race_replays(report, races)
    report.write(folder)


def main() -> None:
    folder = parse_out("Time replay buffers.")
    if cuda.is_available():
        measure_device(folder, DEVICE_RACES, timer=DeviceTimer(), repeats=DEVICE_REPEATS)
        return
    torch.set_num_threads(1)
    measure_twins(folder, race_size=RACE_SIZE, sizes=SIZES, n_frames=N_FRAMES, repeats=REPEATS)


if __name__ == "__main__":
    main()
