"""Time of stacks gathered from single frames, against indexing of stored stacks and a plain copy.

On a GPU: one launch against torch's indexing. Without one: the CPU twin against numpy.take.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from parllel import FrameArray, cuda
from parllel.arrays import FrameSpec
from parllel.ops.stack_gather import StackGather
from support.device_report import DeviceReport
from support.device_timing import DeviceTimer
from support.frames_on_device import Ring, race_frames
from support.report import Report, parse_out
from support.timing import interleave, ratio

N_TRANSITIONS = 50_000
N_ENVS = 8
STACK, FRAME = 4, (84, 84)
BATCH_SIZE = 256
EPISODE_LENGTH = 200  # on average
N_MINIBATCHES = 16  # taken in turn: the frames of one are out of the caches when it comes again
REPEATS = 15  # in each place
N_PLACES = 3
DEVICE_REPEATS = 101
DEVICE_RINGS = tuple(Ring(6_250, 8, n_picked) for n_picked in (32, 256, 2_048))
LEAST_SPEED = 0.9  # of numpy.take
MOST_BYTES = 7_200  # held for each transition

OURS, TAKE, COPY = "parllel", "numpy.take", "copy"

Bytes: TypeAlias = npt.NDArray[np.uint8]
Indices: TypeAlias = Iterator[npt.NDArray[np.int64]]


def make_frames() -> FrameArray:
    """Return a ring of random frames; all rows, and the one behind them, are written."""
    n_steps = N_TRANSITIONS // N_ENVS
    array = FrameArray((n_steps, N_ENVS), np.uint8, FRAME, padding=1)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, *FRAME), np.uint8)
    for t in range(n_steps + 1):
        frames = noise[rng.integers(0, len(noise), N_ENVS)]
        array.write_frames(t, frames, is_first=rng.random(N_ENVS) < 1 / EPISODE_LENGTH)
    return array


def make_outputs() -> list[Bytes]:
    """Return memory for observations and next observations, which is kept."""
    return [np.zeros((BATCH_SIZE, STACK, *FRAME), np.uint8) for _ in range(2)]


def gather_ours(
    frames: FrameArray, outputs: Sequence[Bytes], indices: Indices
) -> Callable[[], None]:
    gather = StackGather([frames.row_source("host"), frames.next.row_source("host")], outputs)
    return lambda: gather.run(next(indices))


def gather_numpy(stacks: Bytes, outputs: Sequence[Bytes], indices: Indices) -> Callable[[], None]:
    observation, next_observation = outputs

    def gather() -> None:
        index = next(indices)
        # mode="clip" is the fastest: "raise", the default, gathers into a buffer first.
        np.take(stacks, index, axis=0, out=observation, mode="clip")
        np.take(stacks[N_ENVS:], index, axis=0, out=next_observation, mode="clip")

    return gather


def copy_all(stacks: Bytes, outputs: Sequence[Bytes], indices: Indices) -> Callable[[], None]:
    """Copy as many bytes, from one contiguous place after the other."""
    starts = itertools.cycle(range(0, N_TRANSITIONS - 2 * BATCH_SIZE, BATCH_SIZE))

    def copy() -> None:
        start = next(starts)
        for output in outputs:
            np.copyto(output, stacks[start : start + BATCH_SIZE])

    return copy


def store_stacks(frames: FrameArray) -> Bytes:
    """Return the stacks of all rows, as a buffer without frames holds them: rows [T + 1, B]."""
    n_steps = len(frames) + 1
    stacks = np.empty((n_steps, N_ENVS, STACK, *FRAME), np.uint8)
    for begin in range(0, n_steps, 256):
        rows = frames[begin : min(begin + 256, n_steps)].to_ndarray()
        stacks[begin : begin + len(rows)] = rows
    return stacks.reshape(-1, STACK, *FRAME)


def measure() -> dict[str, list[float]]:
    """Time all contestants, in several places of memory: a lucky place makes up to 1.6 times."""
    rng = np.random.default_rng(1)
    minibatches = [rng.integers(0, N_TRANSITIONS, BATCH_SIZE) for _ in range(N_MINIBATCHES)]
    seconds: dict[str, list[float]] = {OURS: [], TAKE: [], COPY: []}
    for _ in range(N_PLACES):
        with make_frames() as frames:
            stacks = store_stacks(frames)
            outputs = {name: make_outputs() for name in seconds}
            contestants = {
                OURS: gather_ours(frames, outputs[OURS], itertools.cycle(minibatches)),
                TAKE: gather_numpy(stacks, outputs[TAKE], itertools.cycle(minibatches)),
            }
            check_results(contestants, outputs)
            contestants[COPY] = copy_all(stacks, outputs[COPY], itertools.cycle(minibatches))
            for name, samples in interleave(contestants, repeats=REPEATS).items():
                seconds[name].extend(samples)
    return seconds


def check_results(
    contestants: dict[str, Callable[[], None]], outputs: dict[str, list[Bytes]]
) -> None:
    """Refuse a contestant that gathers something else."""
    for _ in range(N_MINIBATCHES):
        for contestant in contestants.values():
            contestant()
        for ours, theirs in zip(outputs[OURS], outputs[TAKE], strict=True):
            assert ours.tobytes() == theirs.tobytes()


def report_memory(report: Report) -> None:
    stacks_nbytes = STACK * FRAME[0] * FRAME[1]
    spec = FrameSpec.of((N_TRANSITIONS // N_ENVS, N_ENVS), np.uint8, FRAME, padding=1, stack=STACK)
    with spec.make() as array:
        held = array.allocated_nbytes / N_TRANSITIONS
    print(f"observations: {held:,.0f} bytes held for each transition, stacks {stacks_nbytes:,}")
    report.add_target("bytes of observations for each transition", held, MOST_BYTES)


def measure_twins(folder: Path) -> None:
    report = Report(
        "frames",
        "Stacks gathered from single frames, CPU twin, no GPU: into kept outputs, one thread",
        [
            f"{BATCH_SIZE} of {N_TRANSITIONS:,} transitions, {N_ENVS} environments,"
            f" {STACK} x 84 x 84, observation and next observation",
            f"{REPEATS * N_PLACES} interleaved rounds; ratios are medians over the rounds.",
            f"'{TAKE}' has out= and mode='clip', and reads stored stacks; '{COPY}' reads one",
            "place.",
        ],
    )
    seconds = measure()
    report.add_table("gather of a minibatch", seconds, references=[TAKE, COPY])
    times = ratio(seconds, OURS, TAKE)
    print()
    report.add_target(
        f"time / time of numpy.take ({LEAST_SPEED} times its speed)", times, 1 / LEAST_SPEED
    )
    print(f"{1 / times:.2f} times the speed of numpy.take")
    report_memory(report)
    report.write(folder)


def measure_device(
    folder: Path, rings: Sequence[Ring], *, timer: DeviceTimer, repeats: int
) -> None:
    report = DeviceReport(
        "frames",
        "Stacks gathered from single frames on a GPU: into kept outputs",
        [
            "'parllel' is one launch for observations and next ones. torch selects from stacks",
            "that are stored whole, at 4 times the memory; or from single frames, whose numbers it",
            "computes from the age of each row in its episode, which is at hand. 'copy' is one",
            "copy of as many bytes on the device: the limit.",
        ],
        timer=timer,
        repeats=repeats,
    )
    race_frames(report, rings)
    report.write(folder)


def main() -> None:
    folder = parse_out("Time gathers of stacks.")
    if cuda.is_available():
        measure_device(folder, DEVICE_RINGS, timer=DeviceTimer(), repeats=DEVICE_REPEATS)
    else:
        measure_twins(folder)


if __name__ == "__main__":
    main()
