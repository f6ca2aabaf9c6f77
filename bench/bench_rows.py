"""Time of row copies, all leaves of a tree in one call, against numpy.take and a plain copy."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from timing import interleave, print_table, print_target, print_title, ratio

from parllel.kernels.row_table import RowTable
from parllel.kernels.rows import copy_rows

REPEATS = 9  # in each place
N_ROWS = 256  # of a minibatch
N_MINIBATCHES = 8  # taken in turn: the rows of one are out of the nearest cache when it comes again

OURS, TAKE, COPY = "parllel", "numpy.take", "copy"
OURS_SCATTER, NUMPY_SCATTER = "parllel, scatter", "NumPy, scatter"

Index: TypeAlias = npt.NDArray[np.int64]
Indices: TypeAlias = Iterator[Index]
Leaves: TypeAlias = Sequence[npt.NDArray[Any]]  # Any: of every dtype
Shapes: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape of a row

FRAMES: Shapes = {"observation": ("u1", (84, 84, 4))}
N_FRAMES = 2_000
ODD_FRAMES: Shapes = {"observation": ("u1", (33, 33))}
SMALL_TREE: Shapes = {
    "observation": ("f4", (4,)),
    "action": ("i8", ()),
    "reward": ("f4", ()),
    "terminated": ("?", ()),
    "truncated": ("?", ()),
    "hidden": ("f4", (16,)),
}
N_SMALL = 10_000


def random_leaves(shapes: Shapes, n_rows: int) -> list[npt.NDArray[Any]]:
    """Return a tree's leaves full of random bytes; the same ones for each contestant."""
    rng = np.random.default_rng(0)
    leaves = []
    for dtype, shape in shapes.values():
        leaf = np.empty((n_rows, *shape), dtype)
        raw = leaf.reshape(-1).view(np.uint8)
        raw[:] = rng.integers(0, 2 if dtype == "?" else 256, raw.shape, np.uint8)
        leaves.append(leaf)
    return leaves


def gather_ours(outputs: Leaves, leaves: Leaves, indices: Indices) -> Callable[[], None]:
    table, rows = RowTable.of_arrays(outputs, leaves), range(N_ROWS)
    return lambda: copy_rows(table, rows, next(indices))


def gather_numpy(outputs: Leaves, leaves: Leaves, indices: Indices) -> Callable[[], None]:
    def gather() -> None:
        index = next(indices)
        for output, leaf in zip(outputs, leaves, strict=True):
            # mode="clip" is the fastest: "raise", the default, gathers into a buffer first.
            np.take(leaf, index, axis=0, out=output, mode="clip")

    return gather


def scatter_ours(outputs: Leaves, leaves: Leaves, indices: Indices) -> Callable[[], None]:
    table, rows = RowTable.of_arrays(leaves, outputs), range(N_ROWS)
    return lambda: copy_rows(table, next(indices), rows)


def scatter_numpy(outputs: Leaves, leaves: Leaves, indices: Indices) -> Callable[[], None]:
    def scatter() -> None:
        index = next(indices)
        for output, leaf in zip(outputs, leaves, strict=True):
            leaf[index] = output

    return scatter


def copy_all(outputs: Leaves, leaves: Leaves, indices: Indices) -> Callable[[], None]:
    """Copy as many bytes of each leaf, from one contiguous place after the other."""
    starts = itertools.cycle(range(0, len(leaves[0]) - N_ROWS, N_ROWS)[:N_MINIBATCHES])

    def copy() -> None:
        start = next(starts)
        for output, leaf in zip(outputs, leaves, strict=True):
            np.copyto(output, leaf[start : start + N_ROWS])

    return copy


CONTESTANTS = {
    OURS: gather_ours,
    TAKE: gather_numpy,
    COPY: copy_all,
    OURS_SCATTER: scatter_ours,
    NUMPY_SCATTER: scatter_numpy,
}


def measure(shapes: Shapes, n_rows: int) -> dict[str, list[float]]:
    """Time all contestants, each with arrays of its own, and each in the others' places.

    Where the system happens to place an array makes up to 1.6 times: whoever keeps a lucky place
    looks faster than it is.
    """
    rng = np.random.default_rng(1)
    minibatches = [rng.permutation(n_rows)[:N_ROWS] for _ in range(N_MINIBATCHES)]
    check_results(shapes, n_rows, minibatches)
    names = list(CONTESTANTS)
    places = [(random_leaves(shapes, N_ROWS), random_leaves(shapes, n_rows)) for _ in names]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in places:
        names.append(names.pop(0))
        contestants = {
            name: CONTESTANTS[name](*place, itertools.cycle(minibatches))
            for name, place in zip(names, places, strict=True)
        }
        for name, samples in interleave(contestants, repeats=REPEATS).items():
            seconds[name].extend(samples)
    return seconds


def check_results(shapes: Shapes, n_rows: int, minibatches: Sequence[Index]) -> None:
    """Let nobody win by copying something else."""
    for ours, theirs in ((OURS, TAKE), (OURS_SCATTER, NUMPY_SCATTER)):
        results = []
        for name in (ours, theirs):
            place = random_leaves(shapes, N_ROWS), random_leaves(shapes, n_rows)
            CONTESTANTS[name](*place, iter(minibatches))()
            results.append([leaf.tobytes() for leaves in place for leaf in leaves])
        assert results[0] == results[1], (ours, theirs)


def describe(title: str, shapes: Shapes, n_rows: int) -> str:
    nbytes = sum(leaf.nbytes for leaf in random_leaves(shapes, 1))
    rows = f"{N_ROWS} of {n_rows:,} rows of {nbytes:,} bytes"
    return f"{title}: {rows} in {len(shapes)} leaves"


def main() -> None:
    print_title("Rows by index, whole trees, CPU twin, no GPU: into kept outputs, one thread")
    rounds = REPEATS * len(CONTESTANTS)
    print(f"{rounds} interleaved rounds for each tree; ratios are medians over the rounds.")
    print(f"'{TAKE}' is called leaf by leaf, with out= and mode='clip'. '{NUMPY_SCATTER}' is")
    print(f"leaf[index] = rows, leaf by leaf. '{COPY}' copies as many bytes from one place.")
    print("Every contestant works on arrays of its own, on other rows in each call.")
    trees = {
        "frames": (FRAMES, N_FRAMES),
        "odd frames": (ODD_FRAMES, N_SMALL),
        "small tree": (SMALL_TREE, N_SMALL),
    }
    measured = {}
    for title, (shapes, n_rows) in trees.items():
        measured[title] = measure(shapes, n_rows)
        print(f"\n{describe(title, shapes, n_rows)}", end="")
        for names in ((OURS, TAKE, COPY), (OURS_SCATTER, NUMPY_SCATTER, COPY)):
            seconds = {name: measured[title][name] for name in names}
            print_table("", seconds, references=names[1:])
    print()
    print_target(
        "frames: time / time of numpy.take (0.9 times its speed)",
        ratio(measured["frames"], OURS, TAKE),
        1 / 0.9,
    )
    print_target(
        "small tree: time / time of numpy.take (1.5 times its speed)",
        ratio(measured["small tree"], OURS, TAKE),
        1 / 1.5,
    )


if __name__ == "__main__":
    main()
