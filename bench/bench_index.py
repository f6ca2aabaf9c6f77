"""What indexing an Array and a tree costs, against plain NumPy assignments by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from parllel import Array, ArrayDict
from support.report import Report, parse_out
from support.timing import interleave, ratio

T, B, F = 128, 16, 4
REPEATS = 101
MOST_TIMES = {  # ours / by hand
    "array[t, b] = x": 4.5,
    "array[t] = x": 5.0,
    "array[t].to_ndarray()": 15.0,
    "tree[t] = {...}": 5.0,
    "array[2:9]": 12.0,
    "tree[t].to_ndarray()": 3.1,  # 5 us where NumPy takes 1.6
}
# The leaves of a policy-gradient sample tree: dtype and feature shape.
LEAVES: dict[str, tuple[type, tuple[int, ...]]] = {
    "observation": (np.float32, (F,)),
    "action": (np.int64, ()),
    "reward": (np.float32, ()),
    "terminated": (np.bool_, ()),
    "truncated": (np.bool_, ()),
    "value": (np.float32, ()),
}


def measure(folder: Path) -> None:
    report = Report(
        "index",
        f"Indexing, T = {T}, B = {B}, float32 ({F},); on the host, storage local",
        [f"{REPEATS} interleaved rounds; ratios are medians over the rounds."],
    )
    by_hand, ours = contestants_by_hand(), contestants_of_parllel()
    measured = {}
    for what in MOST_TIMES:
        contestants = {"ndarray": by_hand[what], "parllel": ours[what]}
        measured[what] = interleave(contestants, repeats=REPEATS)
        report.add_table(what, measured[what], references=["ndarray"])
    print()
    for what, most in MOST_TIMES.items():
        report.add_target(f"{what} / ndarray", ratio(measured[what], "parllel", "ndarray"), most)
    report.write(folder)


def contestants_of_parllel() -> dict[str, Callable[[], object]]:
    array = Array((T, B), np.float32, feature_shape=(F,))
    tree = ArrayDict(
        {name: Array((T, B), kind, feature_shape=shape) for name, (kind, shape) in LEAVES.items()}
    )
    row, step, values = new_values()

    def write_row() -> None:
        array[5, 3] = row

    def write_step() -> None:
        array[5] = step

    def read_step() -> object:
        return array[5].to_ndarray()

    def write_tree() -> None:
        tree[5] = values

    def take_rows() -> object:
        return array[2:9]

    def read_tree() -> object:
        return tree[5].to_ndarray()

    functions = write_row, write_step, read_step, write_tree, take_rows, read_tree
    return dict(zip(MOST_TIMES, functions, strict=True))


def contestants_by_hand() -> dict[str, Callable[[], object]]:
    array = np.zeros((T, B, F), np.float32)
    leaves = {name: np.zeros((T, B, *shape), kind) for name, (kind, shape) in LEAVES.items()}
    observation, action, reward, terminated, truncated, value = leaves.values()
    row, step, values = new_values()

    def write_row() -> None:
        array[5, 3] = row

    def write_step() -> None:
        array[5] = step

    def read_step() -> object:
        return array[5]

    def write_leaves() -> None:
        observation[5] = values["observation"]
        action[5] = values["action"]
        reward[5] = values["reward"]
        terminated[5] = values["terminated"]
        truncated[5] = values["truncated"]
        value[5] = values["value"]

    def take_rows() -> object:
        return array[2:9]

    def read_leaves() -> object:
        return {name: leaf[5] for name, leaf in leaves.items()}

    functions = write_row, write_step, read_step, write_leaves, take_rows, read_leaves
    return dict(zip(MOST_TIMES, functions, strict=True))


def new_values() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    values = {name: np.ones((B, *shape), kind) for name, (kind, shape) in LEAVES.items()}
    return np.ones(F, np.float32), np.ones((B, F), np.float32), values


if __name__ == "__main__":
    measure(parse_out("Time indexing."))
