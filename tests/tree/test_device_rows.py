"""Rows of whole trees in device memory, read and written in one launch."""

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from parllel import Array, ArrayDict, cuda
from parllel.ops.row_copy import RowCopy
from parllel.replays import Minibatches
from parllel.testing.contracts.tree_case import leaves
from parllel.tree.leaves import as_ndarray

T, B = 6, 4

pytestmark = pytest.mark.usefixtures("cuda_device")


def make_tree() -> ArrayDict:
    """Return a tree in host memory whose leaves have paddings and rings of their own."""
    tree = ArrayDict(
        {
            "state": Array((T, B), np.float32, padding=1),
            "deep": {
                "image": Array((T, B), np.uint8, feature_shape=(5, 7), padding=2, full_size=2 * T),
                "flag": Array((T, B), bool),
            },
        }
    )
    rng = np.random.default_rng(0)
    for _ in range(2):
        tree.rotate()
        for _, leaf in tree.walk():
            leaf[-leaf.padding : T + leaf.padding] = rng.integers(
                0, 99, (T + 2 * leaf.padding, *leaf.shape[1:])
            )
    return tree


def assert_trees_equal(tree: ArrayDict, expected: ArrayDict) -> None:
    assert [path for path, _ in tree.walk()] == [path for path, _ in expected.walk()]
    for (path, leaf), (_, other) in zip(tree.walk(), expected.walk(), strict=True):
        assert_array_equal(np.asarray(leaf.tolist()), np.asarray(other.tolist()), err_msg=path)


SAME_ROWS: list[Any] = [
    (np.array([0, 5, 3, 0]), np.array([1, 2, 0, 1])),
    ([2, 2], 3),
    [4, 1, 0],
    np.array([[0, 1], [2, 3]]),
    np.arange(T * B).reshape(T, B) % 5 == 0,
    np.array([True, False, True, False, False, True]),
]


@pytest.mark.parametrize("index", SAME_ROWS)
def test_rows_of_all_leaves_are_gathered_in_one_launch(index: Any) -> None:
    tree = make_tree()
    on_device = tree.to("device")
    before = copy.copy(cuda.counters)
    gathered = on_device[index].to_torch()
    counted = cuda.counters.since(before)
    assert (counted.launches, counted.copies_to_host, counted.stream_synchronizations) == (1, 0, 0)
    assert_trees_equal(gathered, tree[index].to_ndarray())
    assert_trees_equal(on_device[index].to_ndarray(), tree[index].to_ndarray())


@pytest.mark.parametrize("index", SAME_ROWS)
def test_rows_of_all_leaves_are_scattered_in_one_launch(index: Any) -> None:
    tree = make_tree()
    on_device = tree.to("device")
    values = tree[index].to_ndarray().apply(lambda leaf: leaf[::-1].copy())
    tree[index] = values
    tree[index] = values  # a row that is picked twice: its values are equal now
    values = tree[index].to_ndarray()
    before = cuda.counters.launches
    on_device[index] = values
    assert cuda.counters.launches == before + 1
    assert_trees_equal(on_device.to_ndarray(), tree.to_ndarray())


def test_padding_is_gathered_too_where_all_leaves_have_it() -> None:
    tree = make_tree()
    del tree["deep"]["flag"]
    index = (np.array([-1, 6, 2]), np.array([0, 3, 1]))
    assert_trees_equal(tree.to("device")[index].to_torch(), tree[index].to_ndarray())


@pytest.mark.parametrize(
    "index",
    [
        (slice(1, 3), np.array([0, 2])),  # no whole rows of the leading axes
        (np.array([], np.int64),),
        (np.array([1, 2]), slice(1, 3)),
    ],
)
def test_other_indices_go_leaf_by_leaf(index: Any) -> None:
    tree = make_tree()
    on_device = tree.to("device")
    assert_trees_equal(on_device[index].to_ndarray(), tree[index].to_ndarray())
    values = tree[index].to_ndarray().apply(np.zeros_like)
    tree[index] = values
    on_device[index] = values
    assert_trees_equal(on_device.to_ndarray(), tree.to_ndarray())


def test_leaves_that_pick_other_rows_go_leaf_by_leaf() -> None:
    tree = ArrayDict({"a": Array((T, B), np.float32), "b": Array((T, B + 1), np.float32)})
    for _, leaf in tree.walk():
        leaf[...] = np.arange(leaf.size).reshape(leaf.shape)
    index = (np.array([0, 3]), np.array([1, 2]))
    assert_trees_equal(tree.to("device")[index].to_torch(), tree[index].to_ndarray())


def test_values_of_another_type_are_converted_leaf_by_leaf() -> None:
    tree = make_tree()
    on_device = tree.to("device")
    index = (np.array([0, 3]), np.array([1, 2]))
    values = {"state": [1, 2], "deep": {"image": 7, "flag": np.array([1, 0])}}
    tree[index] = values
    on_device[index] = values
    assert_trees_equal(on_device.to_ndarray(), tree.to_ndarray())


def test_a_row_outside_a_leaf_is_an_error_with_its_path() -> None:
    on_device = make_tree().to("device")
    index = (np.array([0, -1]), np.array([1, 2]))
    with pytest.raises(IndexError, match=r"deep\.flag: index -1 is outside the base buffer"):
        on_device[index]
    with pytest.raises(IndexError, match=r"deep\.flag: index -1 is outside the base buffer"):
        on_device[index] = make_tree()[:2, 0].to_ndarray()


# RowCopy


def test_a_prepared_copy_takes_ranges_and_integers_of_host_and_device() -> None:
    source = cuda.to_device(np.arange(24, dtype=np.float32).reshape(8, 3))
    out = cuda.to_device(np.zeros((4, 3), np.float32))
    rows = RowCopy([out], [source])
    copied = cuda.counters.copies_to_device
    rows.run(range(4), range(7, 3, -1))
    assert cuda.counters.copies_to_device == copied
    assert cuda.to_host(out)[:, 0].tolist() == [21, 18, 15, 12]
    rows.run(np.array([0, 2]), np.array([1, 0]))
    assert cuda.to_host(out)[:, 0].tolist() == [3, 18, 0, 12]
    rows.run(range(1, 3), cuda.to_device(np.array([5, 5])))
    assert cuda.to_host(out)[:, 0].tolist() == [3, 15, 15, 12]


def test_a_prepared_copy_keeps_its_arrays() -> None:
    destination, source = (cuda.to_device(np.full((4, 2), value)) for value in (0.0, 7.0))
    watched = weakref.ref(destination), weakref.ref(source)
    copied = RowCopy([destination], [source])
    del destination, source
    gc.collect()
    assert None not in [reference() for reference in watched]
    copied.run(range(4), range(4))
    written = watched[0]()
    assert written is not None
    assert (cuda.to_host(written) == 7).all()


def test_a_prepared_copy_refuses_what_it_can_see() -> None:
    host, on_device = np.zeros((4, 3)), cuda.to_device(np.zeros((4, 3)))
    with pytest.raises(TypeError, match=r"got arrays of NumPy and of CuPy, expected one kind"):
        RowCopy([on_device], [host])
    rows = RowCopy([on_device], [cuda.to_device(host)])
    before = cuda.counters.launches
    with pytest.raises(IndexError, match="source_index: rows 0 to 4"):
        rows.run(range(4), np.array([0, 1, 2, 4]))
    with pytest.raises(ValueError, match="4 rows to write, 3 to read"):
        rows.run(range(4), cuda.to_device(np.arange(3)))
    assert cuda.counters.launches == before


# Minibatches


@pytest.mark.parametrize("kind", ["device", "managed"])
def test_minibatches_are_those_of_host_memory(kind: str) -> None:
    tree = make_tree()
    expected = [
        minibatch.apply(torch.clone)
        for minibatch in Minibatches(5, np.random.default_rng(0)).of(tree, n_passes=3)
    ]
    moved = tree.to(kind)
    minibatches = Minibatches(5, np.random.default_rng(0)).of(moved, n_passes=3)
    for wanted in expected:
        assert_trees_equal(next(minibatches), wanted)
    assert next(minibatches, None) is None


def test_a_minibatch_is_one_launch_and_a_pass_one_copy() -> None:
    tree = make_tree().to("device")
    minibatches = Minibatches(3, np.random.default_rng(0))
    next(minibatches.of(tree))  # allocates the outputs
    before = copy.copy(cuda.counters)
    assert sum(1 for _ in minibatches.of(tree, n_passes=4)) == 12
    counted = cuda.counters.since(before)
    assert counted.launches == 12
    assert counted.copies_to_device == 1 + 4  # the table of leaves, and an order for each pass
    assert counted.copies_to_host == counted.stream_synchronizations == 0
    assert counted.device_synchronizations == 0


def test_a_batch_is_all_in_memory_that_a_gpu_can_use_or_not_at_all() -> None:
    tree = make_tree().to("device")
    tree["state"] = Array((T, B), np.float32)
    with pytest.raises(TypeError, match="state: local memory: no GPU can use it"):
        next(Minibatches(2, np.random.default_rng(0)).of(tree))


# What leaves may be


def test_values_may_overlap_what_is_written() -> None:
    tree = make_tree()
    on_device = tree.to("device")
    tree[np.array([1, 2, 3])] = tree[0:3]
    on_device[np.array([1, 2, 3])] = on_device[0:3]
    assert_trees_equal(on_device.to_ndarray(), tree.to_ndarray())


def test_leaves_may_overlap_each_other() -> None:
    array = Array((T, B), np.float32, storage="device", padding=1)
    tree = ArrayDict({"now": array[...], "next": array.next})
    tree[np.array([0, 2])] = {name: np.full((2, B), 3, np.float32) for name in tree}
    assert array.to_ndarray()[:, 0].tolist() == [3, 3, 3, 3, 0, 0]


@pytest.mark.parametrize("kind", ["device", "managed"])
def test_a_leaf_may_have_no_byte(kind: str) -> None:
    tree = ArrayDict(
        {
            "none": Array((T, B), np.float32, feature_shape=(0,), storage=kind, padding=1),
            "some": Array((T, B), np.float32, storage=kind, padding=1),
        }
    )
    index = np.array([0, 2])
    tree[index] = {"none": np.zeros((2, B, 0), np.float32), "some": np.ones((2, B), np.float32)}
    shapes = {path: leaf.shape for path, leaf in leaves(tree[index].to_torch()).items()}
    assert shapes == {"none": (2, B, 0), "some": (2, B)}
    assert tree["some"].to_ndarray().sum() == 2 * B
    tree.rotate()
    for minibatch in Minibatches(3, np.random.default_rng(0)).of(tree):
        assert minibatch["none"].shape == (T * B // 3, 0)
    ArrayDict({"none": tree["none"]}).rotate()


def test_an_index_on_the_device_is_refused_with_the_way_out() -> None:
    on_device = make_tree().to("device")
    with pytest.raises(TypeError, match=r"in device memory, .* \.get\(\) of CuPy"):
        on_device[cuda.to_device(np.array([0, 5, 3]))]


def test_one_element_is_written_from_a_vector_of_one() -> None:
    array = Array((4,), np.float32, storage="device")
    array[2] = np.array([5], np.float32)
    assert array.to_ndarray().tolist() == [0, 0, 5, 0]


def test_managed_memory_is_moved_behind_what_is_queued() -> None:
    array = Array((4, 2), np.float32, storage="managed")
    array.to_cupy()[...] = 7
    assert array.to("device").to_ndarray().tolist() == [[7, 7]] * 4


def test_a_copy_of_a_leaf_of_another_library_is_read_only() -> None:
    copied = as_ndarray(cuda.to_device(np.arange(3.0)))
    assert copied.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        copied[0] = 1
