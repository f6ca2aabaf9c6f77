"""Stacks gathered from single frames on a GPU: one launch, against torch's ways."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from parllel import ArrayDict, FrameArray, cuda
from parllel.ops.stack_gather import StackGather
from support.device_report import DeviceReport, device_copy
from support.launch_sizes import blocks_of, with_blocks_of

N_MINIBATCHES = 8  # taken in turn
BLOCKS = (64, 256, 512)  # threads, beside the library's own choice
EPISODE_LENGTH = 200  # on average
N_IMAGES = 64

OURS, COPY = "parllel", "copy"
STACKS, FRAMES = "torch.index_select of stored stacks", "torch.index_select of frames"

Calls = dict[str, Callable[[], object]]


class Ring(NamedTuple):
    """A ring of frames, and the minibatches that are gathered from it.

    Args:
        n_steps, n_envs: rows of the ring, [T, B].
        n_picked: transitions of a minibatch.
        stack: frames of an observation.
        frame_shape: shape of a frame, of uint8.
    """

    n_steps: int
    n_envs: int
    n_picked: int
    stack: int = 4
    frame_shape: tuple[int, ...] = (84, 84)

    def __str__(self) -> str:
        shape = " x ".join(map(str, (self.stack, *self.frame_shape)))
        rows = f"{self.n_picked:,} of {self.n_steps * self.n_envs:,} transitions"
        return f"{rows}, observation and next one, {shape}"

    @property
    def nbytes(self) -> int:
        """Bytes of a minibatch: of observations and next ones."""
        return 2 * self.n_picked * self.stack * int(np.prod(self.frame_shape))


class FrameRows:
    """The frames of a ring in device memory, its stacks as others store them, and outputs.

    The ring has one time step more than minibatches are drawn from: that of the last transitions'
    next observations.

    Args:
        ring: sizes.
        minibatches: numbers of rows, int64 [n_picked] each.
    """

    def __init__(self, ring: Ring, minibatches: Sequence[NDArray[np.int64]]) -> None:
        self.ring = ring
        with random_frames(ring) as frames:
            stacks = np.array(frames.full[0 : ring.n_steps + 1].to_ndarray())
            self.host_stacks = stacks.reshape(-1, *stacks.shape[2:])
            self.tree = ArrayDict({"observation": frames}).to("device")
            first = np.array(frames.full[0 : ring.n_steps + 1].is_first.to_ndarray())
        # How many frames of a row's stack are older than it, and of its own episode.
        self.ages = cuda.tensor_over(cuda.to_device(ages_of(first, ring.stack).reshape(-1)))
        self.host_index = minibatches[0]
        self.indices = [cuda.to_device(numbers) for numbers in minibatches]
        self.index_tensors = [cuda.tensor_over(index) for index in self.indices]
        row = (ring.n_picked, ring.stack, *ring.frame_shape)
        self.outputs = [cuda.to_device(np.zeros(row, np.uint8)) for _ in range(2)]

    def close(self) -> None:
        self.tree.close()


def random_frames(ring: Ring) -> FrameArray:
    """Return a ring of random frames in local memory; all rows, and the one behind, are written."""
    array = FrameArray(
        (ring.n_steps, ring.n_envs), np.uint8, ring.frame_shape, padding=1, stack=ring.stack
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N_IMAGES, *ring.frame_shape), np.uint8)
    for t in range(ring.n_steps + 1):
        frames = images[rng.integers(0, N_IMAGES, ring.n_envs)]
        is_first = rng.random(ring.n_envs) < 1 / EPISODE_LENGTH
        array.write_frames(t, frames, is_first=is_first | (t == 0))
    return array


def ages_of(is_first: NDArray[np.bool_], stack: int) -> NDArray[np.int64]:
    """Return the steps since a row's episode began, [T, B], at most `stack - 1`."""
    ages = np.zeros(is_first.shape, np.int64)
    for t in range(1, len(ages)):
        ages[t] = np.where(is_first[t], 0, np.minimum(ages[t - 1] + 1, stack - 1))
    return ages


def race_frames(report: DeviceReport, rings: Sequence[Ring]) -> None:
    """Add a table for each ring to a report."""
    for ring in rings:
        rng = np.random.default_rng(1)
        n_rows = ring.n_steps * ring.n_envs
        minibatches = [rng.integers(0, n_rows, ring.n_picked) for _ in range(N_MINIBATCHES)]
        rows = FrameRows(ring, minibatches)
        check_results(rows)
        report.race(
            str(ring),
            {**contestants(rows), COPY: device_copy(ring.nbytes)},
            nbytes=2 * ring.nbytes,
            references=(STACKS, COPY),
        )
        rows.close()


def check_results(rows: FrameRows) -> None:
    """Refuse a contestant that gathers something else."""
    index, n_envs = rows.host_index, rows.ring.n_envs
    expected = [rows.host_stacks[index], rows.host_stacks[index + n_envs]]
    for name, call in contestants(rows).items():
        for output in rows.outputs:
            output.fill(0)
        call()
        for found, right in zip(rows.outputs, expected, strict=True):
            assert cuda.to_host(found).tobytes() == right.tobytes(), name


# Contestants: functions that take the next minibatch with each call


def contestants(rows: FrameRows) -> Calls:
    calls = {OURS: gather_ours(rows), STACKS: select_stacks(rows), FRAMES: select_frames(rows)}
    for threads in BLOCKS:
        with blocks_of(threads):
            calls[f"{OURS}, blocks of {threads}"] = with_blocks_of(threads, gather_ours(rows))
    return calls


def gather_ours(rows: FrameRows) -> Callable[[], object]:
    frames: Any = rows.tree["observation"]
    gather = StackGather([frames.row_source("gpu"), frames.next.row_source("gpu")], rows.outputs)
    indices = itertools.cycle(rows.indices)
    return lambda: gather.run(next(indices))


def select_stacks(rows: FrameRows) -> Callable[[], object]:
    """Gather from stacks that are stored whole: 4 times the memory."""
    stacks = cuda.tensor_over(cuda.to_device(rows.host_stacks))
    outputs, indices = tensors_over(rows.outputs), itertools.cycle(rows.index_tensors)

    def select() -> None:
        index = next(indices)
        torch.index_select(stacks, 0, index, out=outputs[0])
        torch.index_select(stacks[rows.ring.n_envs :], 0, index, out=outputs[1])

    return select


def select_frames(rows: FrameRows) -> Callable[[], object]:
    """Gather from single frames, with the age of each row at hand."""
    ring = rows.ring
    leaf: Any = rows.tree["observation"]
    shape = ((ring.n_steps + 1) * ring.n_envs, *ring.frame_shape)
    frames = leaf.full[0 : ring.n_steps + 1].frames.to_torch().reshape(shape)
    back = cuda.tensor_over(cuda.to_device(np.arange(ring.stack)[::-1].copy()))
    outputs = [output.flatten(0, 1) for output in tensors_over(rows.outputs)]
    indices = itertools.cycle(rows.index_tensors)

    def select() -> None:
        index = next(indices)
        for output, row in zip(outputs, (index, index + ring.n_envs), strict=True):
            steps = torch.minimum(back, rows.ages[row].unsqueeze(1))
            numbers = row.unsqueeze(1) - steps * ring.n_envs
            torch.index_select(frames, 0, numbers.flatten(), out=output)

    return select


def tensors_over(arrays: Sequence[Any]) -> list[torch.Tensor]:  # Any: cupy.ndarray
    return [cuda.tensor_over(array) for array in arrays]
