"""Time of windows of steps from a replay buffer: the gather against numpy.take, and the draw alone.

All of it is the CPU twin. A run under load is best begun with `chrt -r 1`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from parllel import Array, ArrayDict, FrameArray
from parllel.kernels.breaks import count_integers
from parllel.kernels.window_search import CROSS, WindowTable
from parllel.ops.breaks import mark_breaks
from parllel.ops.sequences import DrawnWindows, SampledWindows, draw_windows
from parllel.ops.transitions import DrawState, SampledRing
from parllel.replays import SequenceReplayBuffer
from support.report import Report, parse_out
from support.timing import interleave, ratio

REPEATS = 31
SAMPLE_S = 0.05
N_WINDOWS, LENGTH = 16, 64
IMAGE, GRAY, STACK = (64, 64, 3), (64, 64), 4
N_STEPS, N_ENVS = 20_000, 8
SIZES = (10**6, 10**7, 10**8)
END_CHANCE = 1 / 200
MOST_RATIO = 1.5  # of the draw's times in the largest and the smallest ring

OURS, TAKE = "parllel", "numpy.take"
OURS_FRAMES, TAKE_STACKS = "parllel, frames", "numpy.take of stacks"


def build(n_steps: int, *, frames: bool) -> SequenceReplayBuffer:
    """Return a buffer that is full of random images."""
    batch_shape, rng = (n_steps // N_ENVS, N_ENVS), np.random.default_rng(0)
    observation: Array
    if frames:
        observation = FrameArray(batch_shape, np.uint8, GRAY, stack=STACK, padding=1)
    else:
        observation = Array(batch_shape, np.uint8, feature_shape=IMAGE, padding=1)
    samples = ArrayDict({"observation": observation, "reward": Array(batch_shape, np.float32)})
    for name in ("terminated", "truncated"):
        samples[name] = Array(batch_shape, bool)
    kind = {"length": LENGTH, "episode_end": "pad"} if frames else {"length": LENGTH}
    replay = SequenceReplayBuffer(samples, rng=np.random.default_rng(1), **kind)
    replay.restart()
    replay.begin_batch()
    samples.rotate()
    for t in range(batch_shape[0] + 1):
        if isinstance(observation, FrameArray):
            newest = rng.integers(0, 256, (N_ENVS, *GRAY), np.uint8)
            observation.write_frames(t, newest, is_first=t == 0)
        else:
            observation[t] = rng.integers(0, 256, (N_ENVS, *IMAGE), np.uint8)
    replay.end_batch()
    return replay


def make_take(rows: np.ndarray, n_steps: int) -> Callable[[], object]:
    """Return a gather of random windows of rows [steps, environments, ...] by NumPy."""
    rng, flat = np.random.default_rng(2), rows.reshape(-1, *rows.shape[2:])
    out = np.empty(((LENGTH + 1) * N_WINDOWS, *flat.shape[1:]), flat.dtype)
    ages = np.arange(LENGTH + 1)[:, None] * N_ENVS

    def take() -> None:
        begin = rng.integers(0, (n_steps // N_ENVS - LENGTH) * N_ENVS, N_WINDOWS)
        flat.take((ages + begin).reshape(-1), axis=0, out=out, mode="clip")

    return take


def race_gathers(report: Report, n_steps: int, *, repeats: int) -> dict[str, Sequence[float]]:
    images, frames = build(n_steps, frames=False), build(n_steps, frames=True)
    found = images.sample(N_WINDOWS)
    ring = images.samples["observation"].full[: n_steps // N_ENVS + 1].to_ndarray()
    number, column = divmod(found["index"].numpy(), N_ENVS)
    ages = np.arange(LENGTH + 1)[:, None]
    assert (found["observation"].numpy() == ring[number + ages, column]).all()
    stacks = np.random.default_rng(3).integers(
        0, 256, (n_steps // N_ENVS + 1, N_ENVS, STACK, *GRAY), np.uint8
    )
    contestants: dict[str, Callable[[], object]] = {
        OURS: lambda: images.sample(N_WINDOWS),
        TAKE: make_take(ring, n_steps),
        OURS_FRAMES: lambda: frames.sample(N_WINDOWS),
        TAKE_STACKS: make_take(stacks, n_steps),
    }
    seconds = interleave(contestants, repeats=repeats, sample_s=SAMPLE_S)
    heading = f"{N_WINDOWS} windows of {LENGTH} steps, uint8 {IMAGE}, and stacks (4, 64, 64)"
    report.add_table(heading, seconds, references=[TAKE])
    return dict(seconds)


def make_draw(n_rows: int) -> Callable[[], object]:
    """Return draws of windows from a ring of so many steps of all environments together."""
    rng, n_envs = np.random.default_rng(4), 16
    flags = rng.random(10**5) < END_CHANCE
    ring = SampledRing(
        reward=np.zeros(n_rows, np.float32),  # a draw reads none
        terminated=np.resize(flags, n_rows),
        truncated=np.resize(flags[::-1], n_rows),
        valid=None,
        final_slot=np.full(n_rows, -1, np.int32),
        breaks=np.zeros(count_integers(n_rows // n_envs) * n_envs, np.int64),
        width=n_envs,
        n_steps=1,
    )
    mark_breaks(ring, 0, n_rows // n_envs)
    windows = SampledWindows(ring, WindowTable(LENGTH, 0, 1, CROSS, 0))
    state = DrawState("host", key=(1, 2), discount=1.0)
    state.write_steps(0, n_rows // n_envs)
    shape = (LENGTH + 1, N_WINDOWS)
    out = DrawnWindows(
        identity=np.empty(N_WINDOWS, np.int64),
        observed=np.empty(shape, np.int64),
        steps=np.empty((LENGTH, N_WINDOWS), np.int64),
        initial=np.empty(N_WINDOWS, np.int64),
        is_first=np.empty(shape, np.bool_),
        mask=np.empty((LENGTH, N_WINDOWS), np.bool_),
        scratch=np.empty(N_WINDOWS, np.int64),
    )
    return lambda: draw_windows(windows, state, out)


def race_sizes(report: Report, sizes: Sequence[int], *, repeats: int) -> dict[str, Sequence[float]]:
    contestants = {f"{n_rows:,} steps": make_draw(n_rows) for n_rows in sizes}
    seconds = interleave(contestants, repeats=repeats, sample_s=SAMPLE_S)
    heading = (
        f"the draw of {N_WINDOWS} windows of {LENGTH} steps alone, of rings of different sizes"
    )
    report.add_table(heading, seconds, references=[f"{sizes[0]:,} steps"])
    return dict(seconds)


def measure(folder: Path, *, n_steps: int, sizes: Sequence[int], repeats: int) -> None:
    report = Report(
        "sequences",
        "Windows of steps of a replay buffer, CPU twin, no GPU, one thread",
        [
            f"{repeats} interleaved rounds; ratios are medians over the rounds. '{TAKE}' draws",
            "begins of windows, and gathers the same bytes of observations into kept outputs with",
            "mode='clip', and nothing else. Stacks of 4 are gathered as frames by parllel.",
        ],
    )
    gathers = race_gathers(report, n_steps, repeats=repeats)
    draws = race_sizes(report, sizes, repeats=repeats)
    report.add_target(
        "images: time / time of numpy.take (0.9 times its speed)",
        ratio(gathers, OURS, TAKE),
        1 / 0.9,
    )
    report.add_target(
        f"the draw from {sizes[-1]:,} steps: time / time with {sizes[0]:,}",
        ratio(draws, f"{sizes[-1]:,} steps", f"{sizes[0]:,} steps"),
        MOST_RATIO,
    )
    report.write(folder)


def main() -> None:
    torch.set_num_threads(1)
    measure(parse_out("Time windows of steps."), n_steps=N_STEPS, sizes=SIZES, repeats=REPEATS)


if __name__ == "__main__":
    main()
