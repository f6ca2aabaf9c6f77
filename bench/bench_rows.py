"""Time of row copies, all leaves of a tree in one call, against indexing and a plain copy.

On a GPU: one launch against torch's indexing. Without one: the CPU twin against NumPy's.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from parllel import cuda
from parllel.kernels.row_table import RowTable
from parllel.kernels.rows import copy_rows
from support.device_report import DeviceReport
from support.device_timing import DeviceTimer
from support.report import Report, parse_out, rates
from support.row_trees import FRAMES, MEDIUM, ODD_FRAMES, SMALL, Tree, random_leaves
from support.rows_on_device import race_rows
from support.steps_on_device import race_steps
from support.timing import interleave, ratio

REPEATS = 9  # in each place
DEVICE_REPEATS = 101
N_MINIBATCHES = 8  # taken in turn: the rows of one are out of the nearest cache when it comes again

OURS, TAKE, COPY = "parllel", "numpy.take", "copy"
OURS_SCATTER, NUMPY_SCATTER = "parllel, scatter", "NumPy, scatter"

Index: TypeAlias = npt.NDArray[np.int64]
Indices: TypeAlias = Iterator[Index]
Leaves: TypeAlias = Sequence[npt.NDArray[Any]]  # Any: of every dtype

TREES = (
    Tree("frames", FRAMES, 2_000, 256),
    Tree("odd frames", ODD_FRAMES, 10_000, 256),
    Tree("small tree", SMALL, 10_000, 256),
    Tree("medium tree", MEDIUM, 8_192, 2_048),
)
DEVICE_TREES = (
    Tree("frames", FRAMES, 8_192, 256),
    Tree("many frames", FRAMES, 8_192, 2_048),
    Tree("odd frames", ODD_FRAMES, 65_536, 2_048),
    Tree("small tree", SMALL, 65_536, 256),
    Tree("medium tree", MEDIUM, 65_536, 2_048),
    Tree("large minibatch", SMALL, 1_048_576, 65_536),
)
N_ENVS = (16, 64, 256)  # of a time step


def gather_ours(outputs: Leaves, leaves: Leaves, indices: Indices) -> Callable[[], None]:
    table, rows = RowTable.of_arrays(outputs, leaves), range(len(outputs[0]))
    return lambda: copy_rows(table, rows, next(indices))


def gather_numpy(outputs: Leaves, leaves: Leaves, indices: Indices) -> Callable[[], None]:
    def gather() -> None:
        index = next(indices)
        for output, leaf in zip(outputs, leaves, strict=True):
            # mode="clip" is the fastest: "raise", the default, gathers into a buffer first.
            np.take(leaf, index, axis=0, out=output, mode="clip")

    return gather


def scatter_ours(outputs: Leaves, leaves: Leaves, indices: Indices) -> Callable[[], None]:
    table, rows = RowTable.of_arrays(leaves, outputs), range(len(outputs[0]))
    return lambda: copy_rows(table, next(indices), rows)


def scatter_numpy(outputs: Leaves, leaves: Leaves, indices: Indices) -> Callable[[], None]:
    def scatter() -> None:
        index = next(indices)
        for output, leaf in zip(outputs, leaves, strict=True):
            leaf[index] = output

    return scatter


def copy_all(outputs: Leaves, leaves: Leaves, indices: Indices) -> Callable[[], None]:
    """Copy as many bytes of each leaf, from one contiguous place after the other."""
    n = len(outputs[0])
    starts = itertools.cycle(range(0, len(leaves[0]) - n, n)[:N_MINIBATCHES])

    def copy() -> None:
        start = next(starts)
        for output, leaf in zip(outputs, leaves, strict=True):
            np.copyto(output, leaf[start : start + n])

    return copy


CONTESTANTS = {
    OURS: gather_ours,
    TAKE: gather_numpy,
    COPY: copy_all,
    OURS_SCATTER: scatter_ours,
    NUMPY_SCATTER: scatter_numpy,
}
OPERATIONS = {
    "gather": (OURS, TAKE, COPY),
    "scatter": (OURS_SCATTER, NUMPY_SCATTER, COPY),
}


def measure(tree: Tree, *, repeats: int) -> dict[str, list[float]]:
    """Time all contestants, each with arrays of its own, and each with the others' arrays too.

    The address that an array happens to get makes up to 1.6 times: a contestant that keeps a lucky
    one would look faster than it is.
    """
    rng = np.random.default_rng(1)
    minibatches = [rng.permutation(tree.n_rows)[: tree.n_picked] for _ in range(N_MINIBATCHES)]
    check_results(tree, minibatches)
    names = list(CONTESTANTS)
    places = [new_place(tree) for _ in names]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in places:
        names.append(names.pop(0))
        contestants = {
            name: CONTESTANTS[name](*place, itertools.cycle(minibatches))
            for name, place in zip(names, places, strict=True)
        }
        for name, samples in interleave(contestants, repeats=repeats).items():
            seconds[name].extend(samples)
    return seconds


def new_place(tree: Tree) -> tuple[Leaves, Leaves]:
    """Return the rows of a minibatch, and those of the whole tree."""
    return (
        random_leaves(tree.shapes, tree.n_picked, seed=1),
        random_leaves(tree.shapes, tree.n_rows),
    )


def check_results(tree: Tree, minibatches: Sequence[Index]) -> None:
    """Refuse a contestant that copies something else."""
    for ours, theirs, _ in OPERATIONS.values():
        results = []
        for name in (ours, theirs):
            place = new_place(tree)
            CONTESTANTS[name](*place, iter(minibatches))()
            results.append([leaf.tobytes() for leaves in place for leaf in leaves])
        assert results[0] == results[1], (ours, theirs)


def measure_twins(folder: Path, trees: Sequence[Tree], *, repeats: int) -> None:
    rounds = repeats * len(CONTESTANTS)
    report = Report(
        "rows",
        "Rows by index, whole trees, CPU twin, no GPU: into kept outputs, one thread",
        [
            f"{rounds} interleaved rounds for each tree; ratios are medians over the rounds.",
            f"'{TAKE}' is called leaf by leaf, with out= and mode='clip'. '{NUMPY_SCATTER}' is",
            f"leaf[index] = rows, leaf by leaf. '{COPY}' copies as many bytes from one place.",
            "Every contestant works on arrays of its own, on other rows in each call.",
            "GB/s counts what is read and what is written.",
        ],
    )
    measured = {}
    for tree in trees:
        measured[tree.title] = measure(tree, repeats=repeats)
        traffic = 2 * tree.n_picked * tree.row_nbytes
        for what, names in OPERATIONS.items():
            seconds = {name: measured[tree.title][name] for name in names}
            columns = {"GB/s": rates(seconds, traffic)}
            report.add_table(f"{what}, {tree}", seconds, references=names[1:], columns=columns)
    print()
    report.add_target(
        "frames: time / time of numpy.take (0.9 times its speed)",
        ratio(measured["frames"], OURS, TAKE),
        1 / 0.9,
    )
    report.add_target(
        "small tree: time / time of numpy.take (1.5 times its speed)",
        ratio(measured["small tree"], OURS, TAKE),
        1 / 1.5,
    )
    report.write(folder)


def measure_device(
    folder: Path,
    trees: Sequence[Tree],
    numbers_of_envs: Sequence[int],
    *,
    timer: DeviceTimer,
    repeats: int,
) -> None:
    report = DeviceReport(
        "rows",
        "Rows by index, whole trees, on a GPU: into kept outputs",
        [
            "'parllel' is one launch for all leaves; torch is called leaf by leaf. Indices are in",
            "device memory. 'copy' is one copy of as many bytes on the device: the limit.",
        ],
        timer=timer,
        repeats=repeats,
    )
    race_rows(report, trees)
    race_steps(report, numbers_of_envs)
    report.write(folder)


def main() -> None:
    folder = parse_out("Time row copies.")
    if cuda.is_available():
        timer = DeviceTimer()
        measure_device(folder, DEVICE_TREES, N_ENVS, timer=timer, repeats=DEVICE_REPEATS)
    else:
        measure_twins(folder, TREES, repeats=REPEATS)


if __name__ == "__main__":
    main()
