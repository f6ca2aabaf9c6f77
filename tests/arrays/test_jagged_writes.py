"""What JaggedArrays are given: their own elements, numbers that do not fit, and copies."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parllel import ArrayDict, Jagged, JaggedArray
from parllel.arrays import batch_graphs
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.tree.saving import open_tree, save_tree

FIRST = [[1], [2, 2], [3, 3, 3], []]


def filled(storage: str = "local", on_overflow: Any = "raise") -> JaggedArray:
    array = JaggedArray((4,), "f4", capacity=4, storage=storage, on_overflow=on_overflow)
    array[...] = FIRST
    return array


def lists(array: JaggedArray) -> list[list[float]]:
    return [element.tolist() for element in array.to_ndarray()]


def dropped_by(array: JaggedArray) -> list[int]:
    assert array.dropped is not None
    counts: list[int] = array.dropped.to_ndarray().tolist()
    return counts


orders = st.permutations(range(4))


def check_own_elements(storage: str, to: list[int], source: list[int], form: str) -> None:
    array = filled(storage)
    written: Any = array[source]
    if form == "jagged":
        written = array.to_ndarray()[source]
    elif form == "list":
        written = [array[number].to_ndarray() for number in source]
    array[to] = written
    expected = list(FIRST)
    for number, each in zip(to, source, strict=True):
        expected[number] = FIRST[each]
    assert lists(array) == expected


@given(orders, orders, st.integers(1, 4), st.sampled_from(["view", "jagged", "list"]))
def test_elements_of_its_own_are_read_before_they_are_written(
    to: list[int], source: list[int], n: int, form: str
) -> None:
    check_own_elements("local", to[:n], source[:n], form)


@pytest.mark.parametrize("storage", ["pinned", "managed", "device"])
@pytest.mark.parametrize("schedule", ["lazy", "random"])
def test_elements_of_its_own_on_a_device_are_read_before(storage: str, schedule: str) -> None:
    with simulated_cuda(schedule):
        for form in ("view", "jagged", "list"):
            check_own_elements(storage, [0, 1, 2, 3], [3, 2, 1, 0], form)


def test_a_slice_of_itself_moves_as_it_does_in_a_plain_array() -> None:
    array = filled()
    array[1:4] = array[0:3]
    assert lists(array) == [FIRST[0], *FIRST[:3]]


@pytest.mark.parametrize("storage", ["local", "device"])
@pytest.mark.parametrize("index", [[2, 0], slice(2, None, -1), np.array([True, False, True, True])])
def test_elements_that_are_picked_are_a_copy_as_in_numpy(storage: str, index: Any) -> None:
    with simulated_cuda("lazy"):
        array = filled(storage)
        view, expected = array[index], [list(each) for each in np.array(FIRST, object)[index]]
        assert view.is_gathered
        found = [view.to_torch(), view.to_ndarray()]
        array[...] = [[9] * 4] * 4
        for jagged in found:
            assert [each.tolist() for each in jagged.to_ndarray()] == expected
        assert lists(view) == [[9] * 4] * len(expected)


def test_copies_know_what_was_dropped() -> None:
    array = JaggedArray((2,), "f4", capacity=2, on_overflow="drop")
    array[...] = [[1, 2, 3], [1]]
    for other in (pickle.loads(pickle.dumps(array[0:2])), copy.deepcopy(array)):
        assert np.array(other.dropped).tolist() == [1, 0]
        assert lists(other) == [[1, 2], [1]]
    one = pickle.loads(pickle.dumps(array[0]))
    assert (one.to_ndarray().tolist(), int(one.dropped)) == ([1, 2], 1)


@pytest.mark.parametrize("storage", ["local", "device"])
def test_what_elements_lost_counts_in_other_arrays_too(storage: str) -> None:
    with simulated_cuda("lazy"):
        first, second, third = (
            JaggedArray((2,), "f4", capacity=capacity, storage=storage, on_overflow="drop")
            for capacity in (3, 2, 3)
        )
        first[...] = [[1, 2, 3, 4], [1]]
        second[...] = first
        third[0], third[1] = second[0], [1, 2]
        assert dropped_by(second) == [2, 0]
        assert dropped_by(third) == [2, 0]
        third[...] = first[0]
        assert dropped_by(third) == [1, 1]
        third[...] = [[1], [2]]
        assert dropped_by(third) == [0, 0]


@pytest.mark.parametrize(
    ("elements", "dtype"),
    [
        ([[1], [2**40]], "int32"),
        ([[1], [1e300]], "float32"),
        ([[1], [np.nan]], "int32"),
        ([[1], [-1]], "uint8"),
        ([[1], [0.5]], "int64"),
        ([[0.5], [2**53 + 1]], None),
    ],
)
def test_numbers_that_a_packed_jagged_cannot_hold_are_refused(elements: Any, dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"element [01]: got .*expected a number of"):
        Jagged.of(elements, dtype)


def test_an_empty_list_does_not_change_the_type_of_the_others() -> None:
    links = Jagged.of([[], [[0, 2**60 + 1]], []])
    assert (links.dtype, links.feature_shape) == (np.int64, (2,))
    assert links.counts.tolist() == [0, 1, 0]
    assert links[1].tolist() == [[0, 2**60 + 1]]
    assert Jagged.of([[], []]).counts.tolist() == [0, 0]


def test_graphs_of_another_batch_shape_or_library_are_refused() -> None:
    nodes = Jagged.of([np.zeros((1, 1))] * 6).unflatten(0, (2, 3))
    links = Jagged.of([[[0, 0]]] * 6)
    with pytest.raises(ValueError, match=r"graphs \(3, 2\), expected \(2, 3\)"):
        batch_graphs(nodes, links.unflatten(0, (3, 2)))
    with pytest.raises(TypeError, match=r"edge_links: got .*Tensor.*to_ndarray\(\)"):
        batch_graphs(nodes, links.unflatten(0, (2, 3)).to_torch())


@pytest.mark.parametrize("sizes", [(0, 2), (3, 0), (0, 0)])
def test_slots_without_bytes_are_saved_and_read_back(sizes: Any, tmp_path: Path) -> None:
    def make() -> JaggedArray:
        return JaggedArray((2,), "f4", capacity=sizes[0], feature_shape=(sizes[1],))

    array, other = make(), make()
    array[0] = np.zeros((sizes[0], sizes[1]))
    save_tree(ArrayDict({"cloud": array}), tmp_path, {})
    open_tree(tmp_path).load_into(ArrayDict({"cloud": other}))
    for found in (other, open_tree(tmp_path).map()["cloud"]):
        assert [each.shape for each in found.to_ndarray()] == [sizes, (0, sizes[1])]


def test_a_tree_over_files_grows_into_memory_of_its_own(tmp_path: Path) -> None:
    save_tree(ArrayDict({"cloud": filled(on_overflow="grow")}), tmp_path, {})
    mapped = open_tree(tmp_path).map()["cloud"]
    mapped[0] = [7] * 9
    assert lists(mapped) == [[7] * 9, *FIRST[1:]]
    assert lists(open_tree(tmp_path).map()["cloud"]) == FIRST


@pytest.mark.parametrize("convert", [Jagged.to_ndarray, Jagged.to_torch])
@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("uint8", -1), ("uint8", 300), ("int64", 0.5), ("int32", np.nan), ("float32", 1e300)],
)
def test_a_fill_that_the_values_cannot_hold_is_refused(
    convert: Any, dtype: str, fill: float
) -> None:
    jagged = convert(Jagged.of([[1, 2], [3]], dtype))
    with pytest.raises(ValueError, match=f"fill: got .*expected a number of {dtype}"):
        jagged.padded(fill=fill)
    assert jagged.padded(fill=7)[0].tolist() == [[1, 2], [3, 7]]


def test_a_batch_shape_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_shape: got \(-1, -2\), expected a shape of 2"):
        Jagged.of([[1], [2]]).unflatten(0, (-1, -2))


@pytest.mark.parametrize("convert", [JaggedArray.to_ndarray, JaggedArray.to_torch])
def test_elements_that_are_picked_of_a_jagged_do_not_change(convert: Any) -> None:
    array = filled()
    jagged = convert(array)
    picked, neighbours = jagged[[2, 0]], jagged[1:3]
    array[...] = [[9] * n for n in (0, 1, 4, 2)]
    assert [each.tolist() for each in picked] == [FIRST[2], FIRST[0]]
    assert [each.tolist() for each in neighbours] == [[9], [9] * 4]
