"""Rows of a tree, whose views are made when they are asked for: they show what they showed then."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parllel import Array, ArrayDict


def make_tree(**window: Any) -> ArrayDict:
    """Return a tree of numbered rows; one leaf has padding, and so other rows of its memory."""
    tree = ArrayDict(
        {
            "observation": Array((4, 2), np.float32, feature_shape=(3,), padding=1, **window),
            "reward": Array((4, 2), np.float32, **window),
        }
    )
    for leaf in (tree["observation"].full, tree["reward"].full):
        leaf[...] = np.arange(len(leaf)).reshape(-1, *[1] * (leaf.ndim - 1))
    return tree


def first_numbers(rows: ArrayDict) -> list[float]:
    return [leaf.to_ndarray().flat[0] for _, leaf in rows.walk()]


def test_arrays_of_rows_are_those_of_their_views() -> None:
    tree = make_tree()
    for t in range(4):
        arrays = tree[t].to_ndarray()
        assert [each.flat[0] for _, each in arrays.walk()] == [t, t]
        assert first_numbers(tree[t]) == [t, t]
        assert {name: leaf.shape for name, leaf in arrays.items()} == {
            "observation": (2, 3),
            "reward": (2,),
        }
        for leaf in tree[t].values():  # what they are further indexed by
            ahead = leaf.next if t < 3 else leaf.previous
            assert ahead.to_ndarray().flat[0] == (t + 1 if t < 3 else t - 1)
            assert leaf[1:].to_ndarray().flat[0] == leaf[1].to_ndarray().flat[0] == t
        arrays["reward"][1] = 9
        arrays["reward"].shape = (2, 1)  # of its own
        assert tree["reward"][t, 1].to_ndarray() == 9
        assert tree[t]["reward"].shape == (2,)


def test_a_number_of_each_leaf_is_an_array_over_its_memory() -> None:
    tree = ArrayDict({"a": Array((3,), np.float32), "b": Array((3, 2), np.int32)})
    arrays = tree[1].to_ndarray()
    arrays["a"][...] = 5
    assert tree["a"].to_ndarray().tolist() == [0, 5, 0]


@pytest.mark.parametrize("make", [lambda rows: rows, lambda rows: rows.to_ndarray()])
def test_rows_stay_where_they_were_when_the_window_moves(make: Any) -> None:
    tree = make_tree(full_size=8)
    rows, later = tree[1], tree[3]
    tree.rotate()
    assert [float(np.asarray(leaf).flat[0]) for _, leaf in make(rows).walk()] == [1, 1]
    assert first_numbers(tree[1]) == [5, 5]
    tree["reward"] = np.zeros((4, 2), np.float32)  # no Array, and another row 1
    del tree["observation"]
    assert [float(np.asarray(leaf).flat[0]) for _, leaf in make(later).walk()] == [3, 3]
    assert list(make(rows)) == ["observation", "reward"]


def test_rows_of_a_closed_tree_are_refused_by_the_leaf_s_name() -> None:
    tree = make_tree()
    rows, shown = tree[1], tree[2]
    assert list(shown) == ["observation", "reward"]
    tree["reward"].close()
    for each in (rows, shown):
        with pytest.raises(ValueError, match=r"^reward: "):
            each.to_ndarray()
    with pytest.raises(ValueError, match=r"^reward: "):
        tree[1]


def test_rows_outside_one_leaf_are_refused_by_its_name() -> None:
    tree = make_tree()
    assert len(tree["observation"]) == 4
    for t in (-1, 4):  # which the padding has
        tree["observation"][t].to_ndarray()
        with pytest.raises(IndexError, match=r"^reward: "):
            tree[t]


def test_rows_are_copied_sent_and_written_to() -> None:
    tree = make_tree()
    for rows in (copy.copy(tree[2]), copy.deepcopy(tree[2]), pickle.loads(pickle.dumps(tree[2]))):
        assert first_numbers(rows) == [2, 2]
    rows = tree[2]
    rows["reward"] = 7
    assert rows["reward"].to_ndarray().tolist() == [7, 7]
    assert tree["reward"][2].to_ndarray().tolist() == [7, 7]
    assert rows[1].to_ndarray()["reward"] == 7
    assert not hasattr(tree[2], "_other")


@pytest.mark.parametrize("index", [(1, 1), ([0, 1], slice(None)), (slice(None), [0, 1]), ...])
def test_a_slice_of_what_has_no_rows_is_refused(index: Any) -> None:
    array = Array((4, 2), np.float32)[index]
    if index is ...:
        assert array[1:3].shape == (2, 2)
        return
    with pytest.raises(IndexError, match=r"too many indices|takes no further index"):
        array[0:1]


numbers = st.none() | st.integers(-9, 9)


@given(
    before=st.sampled_from([(None,), (1, 3), (-2, 6), (-1, None), (None, None, -1), (0, None, 2)]),
    start=numbers,
    stop=numbers,
    step=st.none() | st.sampled_from([1, 3, -2]),
)
def test_a_slice_is_the_one_of_its_indices_in_the_memory(
    before: tuple[Any, ...], start: int | None, stop: int | None, step: int | None
) -> None:
    """Index k is memory row begin + k * stride, of those that the memory has."""
    array = Array((4, 2), np.int64, padding=2)
    array[-2:6] = np.arange(-2, 6)[:, None]
    view = array[slice(*before)]
    shown = view.to_ndarray()[:, 0].tolist()
    stride = dict(enumerate(before)).get(2) or 1
    reach = [k for k in range(-20, 20) if -2 <= shown[0] + k * stride < 6]
    by = step or 1
    first = start if start is not None else (0 if by > 0 else len(shown) - 1)
    end = stop if stop is not None else (len(shown) if by > 0 else -1)
    first, end = (
        (max(reach[0], min(k, reach[-1] + 1)) if by > 0 else max(reach[0] - 1, min(k, reach[-1])))
        for k in (first, end)
    )
    expected = [shown[0] + k * stride for k in range(first, end, by)]
    assert view[start:stop:step].to_ndarray()[:, 0].tolist() == expected
    assert view[(slice(start, stop, step), 1)].to_ndarray().tolist() == expected
