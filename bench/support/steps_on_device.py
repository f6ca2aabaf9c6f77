"""Time steps on their way to a GPU: one launch that reads pinned memory, against copies."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parllel import Array, ArrayDict, cuda
from parllel.arrays import ArraySpec
from parllel.ops.row_copy import RowCopy
from parllel.tree import allocate_tree
from support.device_report import DeviceReport
from support.row_trees import FRAMES, Shapes, random_leaves

T = 32
SMALL_LEAVES: Shapes = {
    "action": ("i8", ()),
    "reward": ("f4", ()),
    "terminated": ("?", ()),
    "truncated": ("?", ()),
    "lives": ("i4", ()),
}
SHAPES: Shapes = {**FRAMES, **SMALL_LEAVES}
OURS, TORCH, COPY = "parllel, one launch", "tensor.copy_, each leaf", "one cudaMemcpyAsync"
ENGINE = "copy of the observations, then a launch"


class StepArrays:
    """A sample tree in device memory, and a time step of random values for it in pinned memory.

    Args:
        n_envs: environments, B.
        shapes: leaves of a step, of which the first is `observation`.
        n_steps: time steps that the tree has room for.
    """

    def __init__(self, n_envs: int, shapes: Shapes = SHAPES, n_steps: int = T) -> None:
        self.n_envs, self.shapes, self.n_steps = n_envs, shapes, n_steps
        self.tree = allocate_tree(new_specs(shapes, n_steps, n_envs), "device")
        self.step = allocate_tree(new_specs(shapes, n_envs), "pinned")
        self.values = random_leaves(shapes, n_envs)
        for (_, leaf), values in zip(self.step.walk(), self.values, strict=True):
            leaf[...] = values

    def close(self) -> None:
        self.step.close()
        self.tree.close()


def new_specs(shapes: Shapes, *batch_shape: int) -> ArrayDict:
    return ArrayDict(
        {name: ArraySpec.of(batch_shape, dtype, shape) for name, (dtype, shape) in shapes.items()}
    )


def race_steps(
    report: DeviceReport,
    numbers_of_envs: Sequence[int],
    shapes: Shapes = SHAPES,
    n_steps: int = T,
) -> None:
    """Add a table for each number of environments to a report."""
    for n_envs in numbers_of_envs:
        arrays = StepArrays(n_envs, shapes, n_steps)
        check_results(arrays)
        nbytes = sum(values.nbytes for values in arrays.values)
        report.race(
            f"time step of {n_envs} environments, pinned memory to tree: {nbytes:,} bytes in"
            f" {len(shapes)} leaves",
            {**contestants(arrays), COPY: one_copy(nbytes)},
            nbytes=nbytes,
            references=(TORCH, COPY),
        )
        arrays.close()


def check_results(arrays: StepArrays) -> None:
    """Refuse a contestant that copies something else."""
    for name, call in contestants(arrays).items():
        for _, leaf in arrays.tree.walk():
            leaf[...] = 0
        call()
        call()
        for (path, leaf), values in zip(arrays.tree.walk(), arrays.values, strict=True):
            found = leaf[:3].to_ndarray()
            assert found[0].tobytes() == found[1].tobytes() == values.tobytes(), (name, path)
            assert not found[2:].any(), (name, path)


def contestants(arrays: StepArrays) -> dict[str, Callable[[], object]]:
    """Return the contestants: each call writes the step to the next row of the tree."""
    written = [flatten(leaf.to_cupy()) for _, leaf in arrays.tree.walk()]
    read = [leaf.to_cupy() for _, leaf in arrays.step.walk()]
    slot, B = cuda.to_device(arrays.values[0]), arrays.n_envs
    copy, small = RowCopy(written, read), RowCopy(written, [slot, *read[1:]])
    numbers = [range(t * B, (t + 1) * B) for t in range(arrays.n_steps)]
    parts, parts_of_engine = itertools.cycle(numbers), itertools.cycle(numbers)
    rows = [[leaf[t].to_torch() for _, leaf in arrays.tree.walk()] for t in range(arrays.n_steps)]
    observation = arrays.step["observation"].to_ndarray()
    steps, pinned = itertools.cycle(rows), [leaf.to_torch() for _, leaf in arrays.step.walk()]

    def copy_leaves() -> None:
        for row, source in zip(next(steps), pinned, strict=True):
            row.copy_(source, non_blocking=True)

    def copy_by_engine() -> None:
        cuda.copy_to_device(observation, out_device=slot)
        small.run(next(parts_of_engine), range(B))

    return {
        OURS: lambda: copy.run(next(parts), range(B)),
        ENGINE: copy_by_engine,
        TORCH: copy_leaves,
    }


def one_copy(nbytes: int) -> Callable[[], object]:
    """Return a function that copies as many bytes from one pinned block to one of the device."""
    source = Array((nbytes,), np.uint8, storage="pinned")
    destination = cuda.allocate_device(nbytes)
    return functools.partial(_copy_block, source, source.to_ndarray(), destination)


def _copy_block(owner: Array, source: Any, destination: Any) -> None:  # Any: of NumPy, of CuPy
    cuda.copy_to_device(source, out_device=destination)


def flatten(leaf: Any) -> Any:  # Any: cupy.ndarray
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])
