"""Replay buffers that the bench compares, each full of transitions and with memory of its own."""

import copy
import ctypes
import functools
import gc
from collections.abc import Callable
from pathlib import Path
from resource import getpagesize
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from parllel import ArrayDict
from parllel.arrays import ArraySpec, FrameSpec
from parllel.replays import HindsightReplayBuffer, ReplayBuffer
from parllel.tree import allocate_tree

B = 10  # environments
N_BATCHES = 10  # that fill the ring
BATCH_SIZE = 256
N_IMAGES = 97
END_CHANCE = 0.01  # of a step to end its episode


class Kind(NamedTuple):
    """A kind of observation.

    Args:
        dtype: type of the elements.
        shape: shape of an observation.
        are_frames: whether each frame is stored once, and observations are stacks of them.
        has_goals: whether observations are trees with goals, of that shape and dtype too.
    """

    dtype: str
    shape: tuple[int, ...]
    are_frames: bool = False
    has_goals: bool = False


SMALL = Kind("f4", (4,))
STACKS = Kind("u1", (4, 84, 84))
FRAMES = Kind("u1", (4, 84, 84), are_frames=True)
GOALS = Kind("f4", (4,), has_goals=True)
BRANCHES = ("observation", "achieved_goal", "desired_goal")  # of observations with goals


class Contestant(NamedTuple):
    """A full buffer.

    Args:
        sample: returns a minibatch.
        nbytes: by which the process has grown for it.
        buffer: itself.
    """

    sample: Callable[[], Any]
    nbytes: int
    buffer: Any


Make = Callable[..., tuple[Any, Callable[[], Any]]]


def build(make: Make, kind: Kind, n_rows: int, *arguments: Any) -> Contestant:
    """Make a contestant, and measure its memory; that of the code, which stays, is taken before."""
    make(kind, B * N_BATCHES, *arguments)[1]()
    before = resident_nbytes()
    buffer, sample = make(kind, n_rows, *arguments)
    return Contestant(sample, resident_nbytes() - before, buffer)


def resident_nbytes() -> int:
    """Return the bytes of memory that this process holds, without what it has freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


def make_ours(
    kind: Kind,
    n_rows: int,
    buffer_type: Callable[..., ReplayBuffer] = ReplayBuffer,
    storage: str = "local",
) -> tuple[ReplayBuffer, Callable[[], Any]]:
    """Fill a buffer of parllel batch by batch, as a sampler does."""
    full_size = n_rows // B
    T = full_size // N_BATCHES

    def spec(dtype: str, shape: tuple[int, ...] = (), padding: int = 0) -> ArraySpec:
        return ArraySpec.of((T, B), dtype, shape, padding, full_size)

    specs = {
        "observation": observation_spec(kind, (T, B), full_size),
        "action": spec("i8"),
        "reward": spec("f4"),
        "terminated": spec("?"),
        "truncated": spec("?"),
    }
    samples = allocate_tree(ArrayDict(specs), storage)
    rng = np.random.default_rng(0)
    replay = buffer_type(samples, rng=rng)
    replay.restart()
    for _ in range(N_BATCHES):
        replay.begin_batch()
        samples.rotate()
        write_observations(samples["observation"], T, rng, kind)
        samples["action"][...] = rng.integers(0, 2, (T, B))
        samples["reward"][...] = rng.random((T, B), np.float32)
        ends = rng.random((T, B)) < end_chance(kind)
        samples["terminated"][...] = ends
        final = random_observation(rng, kind, ())
        for t, column in np.argwhere(ends).tolist():
            if kind.are_frames:  # a stack goes on with the one before
                final[:-1] = samples["observation"][t, column].to_ndarray()[1:]
            replay.add_final_obs(t, {column: copy.deepcopy(final)})
        replay.end_batch()
    return replay, lambda: replay.sample(BATCH_SIZE)


def make_in_hindsight(samples: ArrayDict, *, rng: np.random.Generator) -> HindsightReplayBuffer:
    """Make a buffer that draws goals, with a reward as robots' environments have it."""
    return HindsightReplayBuffer(
        samples, rng=rng, compute_reward=reward_near_goal, compute_terminated=None
    )


def reward_near_goal(achieved: torch.Tensor, desired: torch.Tensor) -> torch.Tensor:
    """Pay -1 where the goal is further away than 0.05."""
    distance = torch.linalg.vector_norm(achieved - desired, dim=-1)
    return -(distance > 0.05).float()


def observation_spec(
    kind: Kind, batch_shape: tuple[int, int], full_size: int
) -> ArraySpec | dict[str, ArraySpec]:
    if not kind.are_frames:
        spec = ArraySpec.of(batch_shape, kind.dtype, kind.shape, 1, full_size)
        return dict.fromkeys(BRANCHES, spec) if kind.has_goals else spec
    stack, *frame_shape = kind.shape
    return FrameSpec.of(batch_shape, kind.dtype, frame_shape, 1, full_size, stack)


def write_observations(observation: Any, T: int, rng: np.random.Generator, kind: Kind) -> None:
    """Write a batch of T steps, and the row after it."""
    for t in range(T + 1):
        if kind.are_frames:
            frames = random_rows(rng, kind, (B,))[:, -1]
            observation.write_frames(t, frames, is_first=rng.random(B) < end_chance(kind))
        else:
            observation[t] = random_observation(rng, kind, (B,))


def random_observation(rng: np.random.Generator, kind: Kind, batch_shape: tuple[int, ...]) -> Any:
    """Return rows of observations that may be written to, a tree where these have goals."""
    if kind.has_goals:
        return {name: random_rows(rng, kind, batch_shape) for name in BRANCHES}
    return random_rows(rng, kind, batch_shape).copy()


def end_chance(kind: Kind) -> float:
    """Return how likely a step ends its episode: no more often than the usual table takes."""
    return END_CHANCE if kind.dtype == "f4" else END_CHANCE / 2


def make_stable_baselines3(kind: Kind, n_rows: int) -> tuple[Any, Callable[[], Any]]:
    """Fill the buffer of stable-baselines3: all of its arrays, so that they are in memory."""
    from gymnasium import spaces
    from stable_baselines3.common.buffers import ReplayBuffer as TheirBuffer

    space = spaces.Box(-1, 1, kind.shape, np.dtype(kind.dtype))
    buffer = TheirBuffer(n_rows, space, spaces.Discrete(2), device="cpu", n_envs=B)
    rng, batch_shape = np.random.default_rng(0), (n_rows // B, B)
    for rows in (buffer.observations, buffer.next_observations):
        rows[...] = random_rows(rng, kind, batch_shape)
    buffer.actions[...] = rng.integers(0, 2, buffer.actions.shape)
    buffer.rewards[...] = rng.random(batch_shape, np.float32)
    buffer.dones[...] = rng.random(batch_shape) < END_CHANCE
    buffer.timeouts[...] = 0
    buffer.full = True
    return buffer, lambda: buffer.sample(BATCH_SIZE)


def make_take(kind: Kind, n_rows: int) -> tuple[Any, Callable[[], Any]]:
    """Fill arrays, observations and next ones apart; numpy.take gathers them into kept outputs."""
    rng = np.random.default_rng(0)
    observations = random_rows(rng, kind, (n_rows,)), random_rows(rng, kind, (n_rows,))
    arrays = [
        *observations,
        rng.integers(0, 2, n_rows),
        rng.random(n_rows, np.float32),
        rng.random(n_rows) < END_CHANCE,
    ]
    return arrays, take(arrays, [0] * len(arrays), n_rows, rng)


def take_of_stacks(observation: Any) -> Contestant:
    """Let numpy.take gather the stacks of a ring, and the next ones, from a copy of all stacks."""
    before = resident_nbytes()
    ring = observation.full[0 : observation.full_size + 1].to_ndarray()
    stacks = np.array(ring.reshape(-1, *ring.shape[2:]))
    del ring
    sample = take([stacks, stacks], [0, B], len(stacks) - B, np.random.default_rng(0))
    return Contestant(sample, resident_nbytes() - before, stacks)


def take(
    arrays: list[npt.NDArray[Any]], offsets: list[int], n_rows: int, rng: np.random.Generator
) -> Callable[[], Any]:
    outputs = [np.empty((BATCH_SIZE, *array.shape[1:]), array.dtype) for array in arrays]

    def sample() -> list[npt.NDArray[Any]]:
        rows = rng.integers(0, n_rows, BATCH_SIZE)
        for array, offset, output in zip(arrays, offsets, outputs, strict=True):
            # mode="clip" is the fastest: "raise", the default, gathers into a buffer first.
            np.take(array, rows + offset, axis=0, out=output, mode="clip")
        return outputs

    return sample


def random_rows(
    rng: np.random.Generator, kind: Kind, batch_shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Return rows that differ; of images, the same few again and again."""
    if kind.dtype == "f4":
        return rng.random((*batch_shape, *kind.shape), np.float32)
    return few_images(kind.shape)[rng.integers(0, N_IMAGES, batch_shape)]


@functools.cache
def few_images(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (N_IMAGES, *shape), np.uint8)
