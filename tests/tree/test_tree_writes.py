"""Writes into trees: checked whole before the first byte is written, and never lost."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from parllel import Array, ArrayDict
from parllel.arrays import FrameArray

INDICES = {
    "row": 1,
    "negative": -1,
    "element": (1, 2),
    "rows": slice(1, 3),
    "mask": np.array([True, False, True, False]),
    "array": np.array([2, 0]),
    "all": ...,
}
each_index = pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)

MAKERS: dict[str, Callable[[], Any]] = {
    "Array": lambda: Array((4, 3), np.float32, padding=1),
    "view": lambda: Array((6, 3), np.float32, padding=1)[1:5],
    "ndarray": lambda: np.zeros((4, 3), np.float32),
    "tensor": lambda: torch.zeros(4, 3),
}
each_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def as_numpy(leaf: Any) -> Any:
    return leaf.numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf)


def values_of(tree: ArrayDict) -> list[Any]:
    return [as_numpy(leaf).tolist() for _, leaf in tree.walk()]


def flat_and_nested(make: Callable[[], Any]) -> list[ArrayDict]:
    return [
        ArrayDict({"a": make(), "b": make()}),
        ArrayDict({"a": make(), "b": {"c": make(), "d": make()}}),
    ]


def filled(tree: ArrayDict, index: Any, number: float) -> dict[str, Any]:
    """Return a value for each leaf at the index, of the leaf's own shape and dtype there."""

    def fill(leaf: Any) -> Any:
        rows = as_numpy(leaf)[1 if index is INDICES["negative"] else index]
        values = np.full(rows.shape, number, np.float32)
        return torch.from_numpy(values) if isinstance(leaf, torch.Tensor) else values

    return {
        name: filled(item, index, number) if isinstance(item, ArrayDict) else fill(item)
        for name, item in tree.items()
    }


def last_branch(values: dict[str, Any]) -> tuple[dict[str, Any], str]:
    name = list(values)[-1]
    return last_branch(values[name]) if isinstance(values[name], dict) else (values, name)


BAD_VALUES: dict[str, Callable[[Any], Any]] = {
    "shape": lambda good: np.ones(7, np.float32),
    "more dimensions": lambda good: np.ones((2, *good.shape), np.float32),
    "list": lambda good: [1.0] * 7,
    "ragged": lambda good: [[1.0], [1.0, 2.0]],
    "text": lambda good: "a word",
    "texts": lambda good: np.full(good.shape, "a word"),
    "none": lambda good: None,
    "object": lambda good: object(),
}


@each_maker
@each_index
@pytest.mark.parametrize("bad", BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_value_that_does_not_fit_changes_nothing(
    make: Callable[[], Any], index: Any, bad: Callable[[Any], Any]
) -> None:
    for tree in flat_and_nested(make):
        if isinstance(index, int) and index < 0 and not isinstance(tree["a"], Array):
            continue
        values = filled(tree, index, 1)
        branch, name = last_branch(values)
        good = branch[name]
        branch[name] = bad(good)
        if branch[name] is None and isinstance(tree["a"], np.ndarray | Array):
            continue  # NumPy takes it for NaN
        before = values_of(tree)
        with pytest.raises((TypeError, ValueError, RuntimeError, KeyError)) as caught:
            tree[index] = values
        assert name in str(caught.value)
        assert values_of(tree) == before
        branch[name] = good
        tree[index] = values
        assert values_of(tree) != before or index is INDICES["negative"]


@pytest.mark.parametrize("make", [MAKERS["Array"], MAKERS["ndarray"]], ids=["Array", "ndarray"])
@each_index
@pytest.mark.parametrize("kind", ["sparse", "without memory"])
def test_a_tensor_that_numpy_can_not_have_changes_nothing(
    make: Callable[[], Any], index: Any, kind: str
) -> None:
    for tree in flat_and_nested(make):
        values = filled(tree, index, 1)
        branch, name = last_branch(values)
        good = torch.ones(branch[name].shape)
        branch[name] = good.to_sparse() if kind == "sparse" else good.to("meta")
        before = values_of(tree)
        with pytest.raises((TypeError, NotImplementedError)) as caught:
            tree[index] = values
        assert name in " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
        assert values_of(tree) == before


@pytest.mark.parametrize("kind", ["sparse", "without memory"])
def test_of_a_whole_row_the_leaf_is_named_that_does_not_take_a_tensor(kind: str) -> None:
    row = ArrayDict({"a": Array((4, 3), np.float32)[0], "b": Array((4, 3), np.float32)[0]})
    tensor = torch.ones(3).to_sparse() if kind == "sparse" else torch.ones(3, device="meta")
    with pytest.raises((TypeError, NotImplementedError)) as caught:
        row[...] = {"a": np.ones(3, np.float32), "b": tensor}
    found = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert found.startswith("b: ") or "at the leaf b" in found
    assert not row["a"].to_ndarray().any()


@each_index
@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_names_that_differ_anywhere_change_nothing(index: Any, change: str) -> None:
    for tree in flat_and_nested(MAKERS["Array"]):
        values = filled(tree, index, 1)
        branch, name = last_branch(values)
        if change == "missing":
            del branch[name]
        else:
            branch["another"] = 1
        with pytest.raises(KeyError, match=change):
            tree[index] = values
        assert not np.any(np.array([np.array(leaf) for _, leaf in tree.walk()]))


def test_integers_that_a_leaf_can_not_hold_change_nothing() -> None:
    for value in (300, -1, [300, 300, 300]):
        tree = ArrayDict({"a": Array((4, 3), np.float32), "b": Array((4, 3), np.uint8)})
        with pytest.raises(OverflowError):
            tree[0] = {"a": 1, "b": value}
        assert not tree["a"].to_ndarray().any()


def test_a_row_that_one_leaf_does_not_have_changes_nothing() -> None:
    tree = ArrayDict({"a": Array((4, 3), np.float32), "b": Array((3, 3), np.float32)})
    ones = np.ones(3, np.float32)
    for values in ({"a": ones, "b": ones}, {"a": 1, "b": 1}, 1):
        with pytest.raises(IndexError, match="b: "):
            tree[3] = values
        assert not tree["a"].to_ndarray().any()
    tree[2] = {"a": ones, "b": ones}
    assert tree["b"].to_ndarray()[2].all()


def test_a_read_only_leaf_changes_nothing() -> None:
    locked = np.zeros((4, 3), np.float32)
    locked.flags.writeable = False
    ones = np.ones(3, np.float32)
    for leaf in (locked, Array.from_dlpack(locked)):
        tree = ArrayDict({"a": Array((4, 3), np.float32), "b": leaf})
        for values in ({"a": ones, "b": ones}, {"a": 1, "b": 1}):
            with pytest.raises(ValueError, match=r"b: .*read-only"):
                tree[0] = values
            assert not tree["a"].to_ndarray().any()


def test_stacks_of_frames_are_checked_as_well() -> None:
    tree = ArrayDict(
        {"a": Array((4, 3), np.float32), "b": FrameArray((4, 3), np.uint8, (2, 5, 5), padding=1)}
    )
    with pytest.raises(ValueError, match="b: "):
        tree[0] = {"a": 1, "b": np.ones((3, 2, 5, 4), np.uint8)}
    assert not tree["a"].to_ndarray().any()


def test_a_written_row_follows_the_window_and_the_branches() -> None:
    """What was found out about the leaves at one write must not outlive a change of them."""
    ones = np.ones(3, np.float32)
    tree = ArrayDict({name: Array((2, 3), np.float32, full_size=4) for name in "ab"})
    for _ in range(5):
        tree[...] = 0
        tree[1] = {"a": ones, "b": 2 * ones}
        assert values_of(tree) == [[[0] * 3, [1] * 3], [[0] * 3, [2] * 3]]
        tree.rotate()
    tree["b"].rotate()  # alone
    tree[...] = 0
    tree[0] = {"b": ones, "a": 2 * ones}
    assert values_of(tree) == [[[2] * 3, [0] * 3], [[1] * 3, [0] * 3]]
    tree["b"] = np.zeros((2, 3), np.float32)
    tree[0] = {"a": ones, "b": 4 * ones}
    assert values_of(tree) == [[[1] * 3, [0] * 3], [[4] * 3, [0] * 3]]
    del tree["b"]
    tree[1] = {"a": 5 * ones}
    assert values_of(tree) == [[[1] * 3, [5] * 3]]
    with pytest.raises(IndexError, match=r"^a: "):
        tree[2] = {"a": ones}
    tree["a"].close()
    with pytest.raises(ValueError, match=r"^a: .*closed"):
        tree[1] = {"a": ones}


def test_windows_that_differ_are_each_written() -> None:
    tree = ArrayDict({"a": Array((2, 3), np.float32), "b": Array((2, 3), np.float32, padding=1)})
    tree[1] = {"a": np.ones(3, np.float32), "b": np.full(3, 2, np.float32)}
    assert values_of(tree) == [[[0] * 3, [1] * 3], [[0] * 3, [2] * 3]]


# Branches of rows


@each_maker
@each_index
def test_a_branch_of_rows_is_written_in_place(make: Callable[[], Any], index: Any) -> None:
    for tree in flat_and_nested(make):
        if isinstance(index, int) and index < 0 and not isinstance(tree["a"], Array):
            continue
        rows = tree[index]
        rows["a"] = 5.0
        assert np.all(as_numpy(tree[index]["a"]) == 5)
        assert np.all(as_numpy(rows["a"]) == 5)
        assert not np.any(as_numpy(tree[3]["a"])) or index is Ellipsis
        tree[index]["b"] = {"c": 6.0, "d": 7.0} if isinstance(tree["b"], ArrayDict) else 6.0
        branch = tree["b"]["c"] if isinstance(tree["b"], ArrayDict) else tree["b"]
        assert np.all(as_numpy(branch[index]) == 6)
        if isinstance(tree["b"], ArrayDict):
            tree[index]["b"]["d"] = 8.0
            assert np.all(as_numpy(tree["b"]["d"][index]) == 8)


@pytest.mark.parametrize("make", [MAKERS["ndarray"], MAKERS["tensor"]])
def test_rows_of_picked_rows_are_written_in_place_too(make: Callable[[], Any]) -> None:
    tree = ArrayDict({"a": make()})
    tree[np.array([True, False, True, False])][1]["a"] = 5.0
    assert as_numpy(tree["a"])[:, 0].tolist() == [0, 0, 5, 0]


def test_a_branch_that_rows_do_not_have_is_refused() -> None:
    tree = ArrayDict({"a": Array((4, 3), np.float32)})
    with pytest.raises(KeyError, match=r"new: no such branch .* ArrayDict\(rows\)"):
        tree[0]["new"] = 1
    for free in (ArrayDict(tree[0]), copy.copy(tree[0]), pickle.loads(pickle.dumps(tree[0]))):
        free["new"] = 1
        free["a"] = 2
        assert (free["new"], free["a"]) == (1, 2)
    assert not tree["a"].to_ndarray().any()


def test_a_branch_of_rows_that_does_not_fit_changes_nothing() -> None:
    tree = ArrayDict({"a": Array((4, 3), np.float32)})
    with pytest.raises(ValueError, match="a: "):
        tree[0]["a"] = np.ones(7)
    assert not tree["a"].to_ndarray().any()


# What takes a tree for an array


@pytest.mark.parametrize(
    "use",
    [
        np.asarray,
        np.array,
        lambda tree: np.concatenate([tree]),
        lambda tree: np.stack([tree, tree]),
    ],
)
def test_a_tree_is_no_array_of_numpy(use: Callable[[ArrayDict], object]) -> None:
    with pytest.raises(TypeError, match=r"to_ndarray\(\) returns the tree of its arrays"):
        use(ArrayDict({"a": np.zeros(3)}))


def test_trees_are_not_compared() -> None:
    tree = ArrayDict({"a": np.zeros(3)})
    for compare in (lambda: tree == tree, lambda: tree != 3, lambda: tree == {"a": 1}):
        with pytest.raises(TypeError, match="leaf by leaf"):
            compare()
    assert {tree: 1}[tree] == 1


def test_rows_of_a_tree_may_overlap_those_that_are_written() -> None:
    leaves = {"numpy": np.arange(3), "torch": torch.arange(3), "array": Array.from_numpy([0, 1, 2])}
    tree = ArrayDict(leaves)
    tree[1:3] = tree[0:2]
    for leaf in leaves.values():
        np.testing.assert_array_equal(np.asarray(leaf), [0, 0, 1])
