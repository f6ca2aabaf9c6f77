"""Time of elements of different length packed into minibatches, against NumPy and a plain copy.

The CPU twin. Elements are point clouds in slots of a ring; a minibatch picks them at random.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from parllel import JaggedArray
from parllel.ops.ragged import PackedRows, RaggedGather
from parllel.ops.row_copy import RowCopy
from support.report import Report, parse_out
from support.timing import interleave, ratio

BATCH_SIZE = 256
N_ENVS = 8
# Points of the largest cloud, and clouds of the ring.
CAPACITIES = {64: 20_000, 512: 4_000, 2_048: 2_000}
N_FEATURES = 3  # x, y, z
N_MINIBATCHES = 16  # taken in turn: the clouds of one are out of the caches when it comes again
REPEATS = 15  # in each place
N_PLACES = 3
LEAST_OF_COPY = 0.8  # of the speed of a copy of the same bytes
LEAST_OF_LOOP = 5.0  # times the speed of a loop of numpy.concatenate

OURS, LOOP, ONCE, COPY = "parllel", "loop of concatenate", "concatenate once", "copy"
ROWS = "rows of one length"

Indices: TypeAlias = Iterator[npt.NDArray[np.int64]]


def make_clouds(capacity: int, n_clouds: int) -> JaggedArray:
    """Return a ring of clouds of 0 to `capacity` points."""
    clouds = JaggedArray(
        (n_clouds // N_ENVS, N_ENVS), np.float32, feature_shape=(N_FEATURES,), capacity=capacity
    )
    rng = np.random.default_rng(0)
    parts = clouds.memory_parts
    parts["values"][...] = rng.random(parts["values"].shape, np.float32)
    parts["lengths"][...] = rng.integers(0, capacity + 1, parts["lengths"].shape)
    return clouds


def make_output(capacity: int) -> PackedRows:
    """Return memory for a minibatch, which is kept."""
    values = np.zeros((BATCH_SIZE * capacity, N_FEATURES), np.float32)
    return PackedRows(values, np.zeros(BATCH_SIZE + 1, np.int64))


def gather_ours(clouds: JaggedArray, output: PackedRows, indices: Indices) -> Callable[[], None]:
    gather = RaggedGather([clouds.row_source("host")], [output])
    return lambda: gather.run(next(indices))


def split(clouds: JaggedArray) -> list[npt.NDArray[np.float32]]:
    """Return each cloud as an array of its own, as a list of observations holds them."""
    return [cloud.copy() for row in clouds.to_ndarray() for cloud in row]


def concatenate_in_loop(
    clouds: list[npt.NDArray[np.float32]], output: dict[str, Any], indices: Indices
) -> Callable[[], None]:
    """Append one element after the other."""

    def gather() -> None:
        packed, offsets = np.zeros((0, N_FEATURES), np.float32), [0]
        for number in next(indices):
            packed = np.concatenate([packed, clouds[number]])
            offsets.append(len(packed))
        output["packed"], output["offsets"] = packed, np.array(offsets)

    return gather


def concatenate_once(
    clouds: list[npt.NDArray[np.float32]], output: dict[str, Any], indices: Indices
) -> Callable[[], None]:
    """Put all elements into a list, and that into one call."""

    def gather() -> None:
        picked = [clouds[number] for number in next(indices)]
        output["packed"] = np.concatenate(picked)
        output["offsets"] = np.cumsum([0, *map(len, picked)])

    return gather


def copy_all(
    clouds: JaggedArray, minibatches: list[npt.NDArray[np.int64]], output: PackedRows
) -> Callable[[], None]:
    """Copy as many bytes as each minibatch has, from one contiguous place after the other."""
    lengths = clouds.memory_parts["lengths"].ravel()
    items = clouds.memory_parts["values"].reshape(-1, N_FEATURES)
    counts = [int(lengths[each].sum()) for each in minibatches]
    places = itertools.cycle(
        [(len(items) * at // len(counts), count) for at, count in enumerate(counts)]
    )

    def copy() -> None:
        begin, n_items = next(places)
        source = items[begin : begin + n_items]
        np.copyto(output.values[: len(source)], source)

    return copy


def gather_rows(clouds: JaggedArray, indices: Indices) -> Callable[[], None]:
    """Gather the first half of the same slots: as many bytes, on average, from as many places."""
    slots = clouds.memory_parts["values"]
    rows = slots.reshape(-1, slots.shape[2] * N_FEATURES)[:, : slots.shape[2] // 2 * N_FEATURES]
    output = np.zeros((BATCH_SIZE, rows.shape[1]), np.float32)
    copy = RowCopy([output], [rows])
    return lambda: copy.run(range(BATCH_SIZE), next(indices))


def measure(capacity: int, n_clouds: int) -> dict[str, list[float]]:
    """Time all contestants, in several places of memory."""
    rng = np.random.default_rng(1)
    minibatches = [rng.integers(0, n_clouds, BATCH_SIZE) for _ in range(N_MINIBATCHES)]
    seconds: dict[str, list[float]] = {OURS: [], COPY: [], ROWS: [], ONCE: [], LOOP: []}
    for _ in range(N_PLACES):
        with make_clouds(capacity, n_clouds) as clouds:
            apart, outputs = split(clouds), (make_output(capacity), make_output(capacity))
            loop, once = {}, {}  # type: dict[str, Any], dict[str, Any]
            cycle = [itertools.cycle(minibatches) for _ in range(4)]
            contestants = {
                OURS: gather_ours(clouds, outputs[0], cycle[0]),
                LOOP: concatenate_in_loop(apart, loop, cycle[1]),
                ONCE: concatenate_once(apart, once, cycle[2]),
            }
            for _ in range(N_MINIBATCHES):  # refuse a contestant that gathers something else
                for contestant in contestants.values():
                    contestant()
                values, offsets = outputs[0]
                for theirs in (loop, once):
                    assert offsets.tolist() == theirs["offsets"].tolist()
                    assert values[: offsets[-1]].tobytes() == theirs["packed"].tobytes()
            contestants[COPY] = copy_all(clouds, minibatches, outputs[1])
            contestants[ROWS] = gather_rows(clouds, cycle[3])
            for name, samples in interleave(contestants, repeats=REPEATS).items():
                seconds[name].extend(samples)
    return seconds


def measure_twins(folder: Path) -> None:
    report = Report(
        "ragged",
        "Elements of different length packed into minibatches, CPU twin, no GPU, one thread",
        [
            f"{BATCH_SIZE} point clouds of 0 to n points of {N_FEATURES} float32, from"
            f" {', '.join(f'{n:,}' for n in CAPACITIES.values())} clouds",
            f"{REPEATS * N_PLACES} interleaved rounds; ratios are medians over the rounds.",
            f"'{COPY}' copies as many bytes from one place; '{ROWS}' gathers half of the",
            f"same slots by row_copy. '{LOOP}' appends clouds one by one, '{ONCE}'",
            "all at once; both read arrays of their own, and make new memory.",
        ],
    )
    for capacity, n_clouds in CAPACITIES.items():
        seconds = measure(capacity, n_clouds)
        heading = f"clouds of up to {capacity} points"
        report.add_table(heading, seconds, references=[COPY, ROWS, ONCE, LOOP])
        print()
        report.add_target(
            f"{heading}: time / time of a copy ({LEAST_OF_COPY} times its speed)",
            ratio(seconds, OURS, COPY),
            1 / LEAST_OF_COPY,
        )
        report.add_target(
            f"{heading}: time / time of a gather of as many bytes in rows of one length",
            ratio(seconds, OURS, ROWS),
            1 / LEAST_OF_COPY,
        )
        report.add_target(
            f"{heading}: time / time of a loop of concatenate ({LEAST_OF_LOOP} times its speed)",
            ratio(seconds, OURS, LOOP),
            1 / LEAST_OF_LOOP,
        )
    report.write(folder)


def main() -> None:
    measure_twins(parse_out("Time gathers of elements of different length."))


if __name__ == "__main__":
    main()
