"""Time of random shifts in the gather of a minibatch, against padding and sampling a grid."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from parllel import Array, ArrayDict, FrameArray
from parllel.replays import RandomShift, ReplayBuffer
from support.report import Report, parse_out
from support.timing import interleave, ratio

REPEATS = 31
SAMPLE_S = 0.05
N_TRANSITIONS, N_ENVS = 20_000, 8
STACK, FRAME = 4, (84, 84)
BATCH_SIZE = 256
PIXELS = 4
MOST_TIME = 1.3  # of a gather without shifts

PLAIN, SHIFTED = "gather", "gather, shifted"
USUAL = "gather, then grid_sample"


def build(n_transitions: int, *, frames: bool, shift: RandomShift | None) -> ReplayBuffer:
    """Return a buffer that is full of random images."""
    batch_shape, rng = (n_transitions // N_ENVS, N_ENVS), np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, *FRAME), np.uint8)
    observation: Array
    if frames:
        observation = FrameArray(batch_shape, np.uint8, FRAME, stack=STACK, padding=1)
    else:
        shape = (STACK, *FRAME)
        observation = Array(batch_shape, np.uint8, feature_shape=shape, padding=1)
    samples = ArrayDict({"observation": observation, "reward": Array(batch_shape, np.float32)})
    for name in ("terminated", "truncated"):
        samples[name] = Array(batch_shape, bool)
    replay = ReplayBuffer(samples, rng=np.random.default_rng(1), shift=shift)
    replay.restart()
    replay.begin_batch()
    samples.rotate()
    for t in range(batch_shape[0] + 1):
        if isinstance(observation, FrameArray):
            newest = noise[rng.integers(0, len(noise), N_ENVS)]
            observation.write_frames(t, newest, is_first=rng.random(N_ENVS) < 1 / 200)
        else:
            observation[t] = noise[rng.integers(0, len(noise), (N_ENVS, STACK))]
    replay.end_batch()
    return replay


def shift_by_grid(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return float32 images, shifted as DrQ-v2 does it: pad, and sample a grid that is moved.

    Source: Yarats et al. 2021, arXiv:2107.09645, section 3.1; of square images.
    """
    n, _, _, size = images.shape
    padded = functional.pad(images.float(), (PIXELS,) * 4, mode="replicate")
    width = size + 2 * PIXELS
    line = torch.linspace(-1 + 1 / width, 1 - 1 / width, width)[:size]
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).expand(n, -1, -1, -1)
    moved = torch.randint(0, 2 * PIXELS + 1, (n, 1, 1, 2), generator=generator) * (2 / width)
    return functional.grid_sample(padded, grid + moved, padding_mode="zeros", align_corners=False)


def check_usual_way() -> None:
    """Refuse a usual way whose images are no windows of the padded ones."""
    image = torch.arange(256.0).repeat(28)[: 84 * 84].reshape(1, 1, 84, 84)
    shifted = shift_by_grid(image, torch.Generator().manual_seed(0))
    padded = functional.pad(image, (PIXELS,) * 4, mode="replicate")
    windows = padded.unfold(2, 84, 1).unfold(3, 84, 1)[0, 0]
    assert (windows - shifted[0, 0]).abs().amax(dim=(2, 3)).min() < 0.5


def race(
    report: Report, n_transitions: int, *, frames: bool, repeats: int
) -> dict[str, Sequence[float]]:
    plain = build(n_transitions, frames=frames, shift=None)
    shifted = build(n_transitions, frames=frames, shift=RandomShift(PIXELS))
    generator = torch.Generator().manual_seed(0)

    def sample_and_shift() -> None:
        minibatch = plain.sample(BATCH_SIZE)
        for name in ("observation", "next_observation"):
            shift_by_grid(minibatch[name], generator)

    contestants: dict[str, Callable[[], object]] = {
        PLAIN: lambda: plain.sample(BATCH_SIZE),
        SHIFTED: lambda: shifted.sample(BATCH_SIZE),
        USUAL: sample_and_shift,
    }
    seconds = interleave(contestants, repeats=repeats, sample_s=SAMPLE_S)
    stored = "single frames (FrameArray)" if frames else "whole stacks (Array)"
    heading = f"{BATCH_SIZE} transitions of uint8 (4, 84, 84), stored as {stored}"
    report.add_table(heading, seconds, references=[PLAIN])
    for replay in (plain, shifted):
        replay.close()
        replay.samples.close()
    return dict(seconds)


def measure(folder: Path, *, n_transitions: int, repeats: int) -> None:
    check_usual_way()
    report = Report(
        "shift",
        "Random shifts of observation and next observation, CPU twin, no GPU, one thread",
        [
            f"{repeats} interleaved rounds; ratios are medians over the rounds. Shifts are up to",
            f"{PIXELS} pixels, in uint8, in the gather; '{USUAL}' pads float32 images by",
            "their edges and calls torch's grid_sample, and its images are float32.",
        ],
    )
    for frames in (False, True):
        seconds = race(report, n_transitions, frames=frames, repeats=repeats)
        kind = "frames" if frames else "stacks"
        claim = f"{kind}, shifted: time / time without shifts"
        report.add_target(claim, ratio(seconds, SHIFTED, PLAIN), MOST_TIME)
    report.write(folder)


def main() -> None:
    torch.set_num_threads(1)
    folder = parse_out("Time random shifts of images.")
    measure(folder, n_transitions=N_TRANSITIONS, repeats=REPEATS)


if __name__ == "__main__":
    main()
