"""Time steps on their way to a GPU: one launch that reads pinned memory, against torch's copies."""

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
from support.row_trees import FRAMES, random_leaves

T = 32
SHAPES = {
    **FRAMES,
    "action": ("i8", ()),
    "reward": ("f4", ()),
    "terminated": ("?", ()),
    "truncated": ("?", ()),
    "lives": ("i4", ()),
}
OURS, TORCH, COPY = "parllel, one launch", "tensor.copy_, each leaf", "one cudaMemcpyAsync"


class StepArrays:
    """A sample tree in device memory, and a time step of random values for it in pinned memory.

    Args:
        n_envs: environments, B.
    """

    def __init__(self, n_envs: int) -> None:
        self.n_envs = n_envs
        self.tree = allocate_tree(new_specs(T, n_envs), "device")
        self.step = allocate_tree(new_specs(n_envs), "pinned")
        self.values = random_leaves(SHAPES, n_envs)
        for (_, leaf), values in zip(self.step.walk(), self.values, strict=True):
            leaf[...] = values

    def close(self) -> None:
        self.step.close()
        self.tree.close()


def new_specs(*batch_shape: int) -> ArrayDict:
    return ArrayDict(
        {name: ArraySpec.of(batch_shape, dtype, shape) for name, (dtype, shape) in SHAPES.items()}
    )


def race_steps(report: DeviceReport, numbers_of_envs: Sequence[int]) -> None:
    """Add a table for each number of environments to a report."""
    for n_envs in numbers_of_envs:
        check_results(n_envs)
        arrays = StepArrays(n_envs)
        nbytes = sum(values.nbytes for values in arrays.values)
        report.race(
            f"time step of {n_envs} environments, pinned memory to tree: {nbytes:,} bytes in"
            f" {len(SHAPES)} leaves",
            {**contestants(arrays), COPY: one_copy(nbytes)},
            nbytes=nbytes,
            references=(TORCH, COPY),
        )
        arrays.close()


def check_results(n_envs: int) -> None:
    """Refuse a contestant that copies something else."""
    for name in (OURS, TORCH):
        arrays = StepArrays(n_envs)
        call = contestants(arrays)[name]
        call()
        call()
        for (path, leaf), values in zip(arrays.tree.walk(), arrays.values, strict=True):
            found = leaf.to_ndarray()
            assert found[0].tobytes() == found[1].tobytes() == values.tobytes(), (name, path)
            assert not found[2:].any(), (name, path)
        arrays.close()


def contestants(arrays: StepArrays) -> dict[str, Callable[[], object]]:
    """Return the contestants: each call writes the step to the next row of the tree."""
    written = [flatten(leaf.to_cupy()) for _, leaf in arrays.tree.walk()]
    read = [leaf.to_cupy() for _, leaf in arrays.step.walk()]
    copy, B = RowCopy(written, read), arrays.n_envs
    parts = itertools.cycle([range(t * B, (t + 1) * B) for t in range(T)])
    rows = [[leaf[t].to_torch() for _, leaf in arrays.tree.walk()] for t in range(T)]
    steps, pinned = itertools.cycle(rows), [leaf.to_torch() for _, leaf in arrays.step.walk()]

    def copy_leaves() -> None:
        for row, source in zip(next(steps), pinned, strict=True):
            row.copy_(source, non_blocking=True)

    return {OURS: lambda: copy.run(next(parts), range(B)), TORCH: copy_leaves}


def one_copy(nbytes: int) -> Callable[[], object]:
    """Return a function that copies as many bytes from one pinned block to one of the device."""
    source = Array((nbytes,), np.uint8, storage="pinned")
    destination = cuda.allocate_device(nbytes)
    return functools.partial(_copy_block, source, source.to_ndarray(), destination)


def _copy_block(owner: Array, source: Any, destination: Any) -> None:  # Any: of NumPy, of CuPy
    cuda.copy_to_device(source, out_device=destination)


def flatten(leaf: Any) -> Any:  # Any: cupy.ndarray
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])
