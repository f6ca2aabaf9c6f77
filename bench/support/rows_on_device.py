"""Row copies on a GPU: one launch for a whole tree, against torch's indexing leaf by leaf."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from parllel import cuda
from parllel.ops.row_copy import RowCopy
from support.device_report import DeviceReport, device_copy
from support.launch_sizes import blocks_of, with_blocks_of
from support.row_trees import Tree, random_leaves

N_MINIBATCHES = 8  # taken in turn
BLOCKS = (64, 256, 512)  # threads, beside the library's own choice

OURS, COPY = "parllel", "copy"
SELECT, PUT, SLICES = "torch.index_select", "torch.index_put_", "torch, slices"

Host: TypeAlias = NDArray[Any]  # Any: of every dtype
Calls: TypeAlias = dict[str, Callable[[], object]]


class RowArrays:
    """The rows of a minibatch and those of a tree: arrays of the device, and tensors over them.

    Args:
        tree: what the leaves look like.
        minibatches: the rows to copy, int64 [n_picked] each.
    """

    def __init__(self, tree: Tree, minibatches: Sequence[NDArray[np.int64]]) -> None:
        self.host_picked = random_leaves(tree.shapes, tree.n_picked, seed=1)
        self.host_leaves = random_leaves(tree.shapes, tree.n_rows)
        self.picked = [cuda.to_device(leaf) for leaf in self.host_picked]
        self.leaves = [cuda.to_device(leaf) for leaf in self.host_leaves]
        tensors = ([cuda.tensor_over(leaf) for leaf in side] for side in (self.picked, self.leaves))
        self.tensors = list(zip(*tensors, strict=True))
        self.every = range(tree.n_picked)
        self.host_index = minibatches[0]
        self.indices = [cuda.to_device(numbers) for numbers in minibatches]
        self.index_tensors = [cuda.tensor_over(index) for index in self.indices]
        # Contiguous minibatches, the first of which is not at the tree's beginning.
        starts = range(1, tree.n_rows - tree.n_picked + 1, tree.n_picked)[:N_MINIBATCHES]
        self.slices = [slice(start, start + tree.n_picked) for start in starts]

    def reset(self) -> None:
        """Make all bytes what they were at the beginning."""
        for host, device in zip(self.host_picked, self.picked, strict=True):
            cuda.copy_to_device(host, out_device=device)
        for host, device in zip(self.host_leaves, self.leaves, strict=True):
            cuda.copy_to_device(host, out_device=device)


def race_rows(report: DeviceReport, trees: Sequence[Tree]) -> None:
    """Add the tables of all operations on all trees to a report."""
    rng = np.random.default_rng(1)
    for tree in trees:
        minibatches = [rng.permutation(tree.n_rows)[: tree.n_picked] for _ in range(N_MINIBATCHES)]
        arrays = RowArrays(tree, minibatches)
        check_results(arrays)
        nbytes = tree.n_picked * tree.row_nbytes
        for operation in OPERATIONS:
            report.race(
                f"{operation.name}, {tree}",
                {**operation.contestants(arrays), COPY: device_copy(nbytes)},
                nbytes=2 * nbytes,
                references=(operation.rival, COPY),
            )


def check_results(arrays: RowArrays) -> None:
    """Refuse a contestant that copies something else."""
    for operation in OPERATIONS:
        picked = [leaf.copy() for leaf in arrays.host_picked]
        leaves = [leaf.copy() for leaf in arrays.host_leaves]
        for rows_of_leaf, leaf in zip(picked, leaves, strict=True):
            operation.by_numpy(rows_of_leaf, leaf, arrays.host_index, arrays.slices[0])
        expected = [leaf.tobytes() for leaf in (*picked, *leaves)]
        for name, call in operation.contestants(arrays).items():
            arrays.reset()
            call()
            found = [cuda.to_host(leaf).tobytes() for leaf in (*arrays.picked, *arrays.leaves)]
            assert found == expected, (operation.name, name)


# Contestants: functions that take the next minibatch with each call


def gathers(arrays: RowArrays) -> Calls:
    def select(index: torch.Tensor) -> None:
        for picked, leaf in arrays.tensors:
            torch.index_select(leaf, 0, index, out=picked)

    calls: Calls = {OURS: gather_ours(arrays), SELECT: on_each(arrays.index_tensors, select)}
    for threads in BLOCKS:
        with blocks_of(threads):
            calls[f"{OURS}, blocks of {threads}"] = with_blocks_of(threads, gather_ours(arrays))
    return calls


def gather_ours(arrays: RowArrays) -> Callable[[], object]:
    copy = RowCopy(arrays.picked, arrays.leaves)
    return on_each(arrays.indices, lambda index: copy.run(arrays.every, index))


def scatters(arrays: RowArrays) -> Calls:
    copy = RowCopy(arrays.leaves, arrays.picked)

    def put(index: torch.Tensor) -> None:
        for picked, leaf in arrays.tensors:
            leaf.index_put_((index,), picked)

    return {
        OURS: on_each(arrays.indices, lambda index: copy.run(index, arrays.every)),
        PUT: on_each(arrays.index_tensors, put),
    }


def slice_writes(arrays: RowArrays) -> Calls:
    copy = RowCopy(arrays.leaves, arrays.picked)

    def write(part: slice) -> None:
        for picked, leaf in arrays.tensors:
            leaf[part].copy_(picked)

    return {
        OURS: on_each(
            arrays.slices, lambda part: copy.run(range(part.start, part.stop), arrays.every)
        ),
        SLICES: on_each(arrays.slices, write),
    }


def on_each(arguments: Sequence[Any], function: Callable[[Any], object]) -> Callable[[], object]:
    """Return a function that calls another one with the next of some arguments, round and round."""
    turns = itertools.cycle(arguments)
    return lambda: function(next(turns))


# The right results


def gather_by_numpy(picked: Host, leaf: Host, index: Host, part: slice) -> None:
    picked[...] = leaf[index]


def scatter_by_numpy(picked: Host, leaf: Host, index: Host, part: slice) -> None:
    leaf[index] = picked


def write_by_numpy(picked: Host, leaf: Host, index: Host, part: slice) -> None:
    leaf[part] = picked


class Operation(NamedTuple):
    """An operation on rows, and the contestants that perform it.

    Args:
        name: name of the operation.
        contestants: returns a function for each contestant, by its name.
        by_numpy: computes the right result of one leaf.
        rival: name of the contestant of torch.
    """

    name: str
    contestants: Callable[[RowArrays], Calls]
    by_numpy: Callable[[Host, Host, Host, slice], None]
    rival: str


OPERATIONS = (
    Operation("gather", gathers, gather_by_numpy, SELECT),
    Operation("scatter", scatters, scatter_by_numpy, PUT),
    Operation("write of a slice", slice_writes, write_by_numpy, SLICES),
)
