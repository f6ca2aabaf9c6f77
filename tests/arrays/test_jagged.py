"""Jagged: elements of different length as they are read, compared with lists of arrays."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from parllel import Jagged
from parllel.arrays import batch_graphs

CAPACITY = 5
LIBRARIES = {"numpy": lambda jagged: jagged, "torch": Jagged.to_torch}
each_library = pytest.mark.parametrize("convert", LIBRARIES.values(), ids=LIBRARIES)


def elements_of(lengths: list[int], features: tuple[int, ...] = (2,)) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(len(lengths))
    return [rng.random((n, *features), np.float32) for n in lengths]


def in_slots(elements: list[NDArray[np.float32]], order: list[int] | None = None) -> Jagged:
    """Put each element into a slot of its own, where NaN fills what is left of it."""
    order = list(range(len(elements))) if order is None else order
    features = elements[0].shape[1:] if elements else (2,)
    slots = np.full((len(elements), CAPACITY, *features), np.nan, np.float32)
    for element, slot in zip(elements, order, strict=True):
        slots[slot, : len(element)] = element
    begins = np.array([*order, len(elements)], np.int64) * CAPACITY
    lengths = np.array([len(element) for element in elements], np.int64)
    return Jagged(slots.reshape(-1, *features), begins, lengths)


def check_equal(found: Jagged, elements: list[NDArray[Any]]) -> None:
    assert len(found.offsets) - 1 == len(elements)
    shape = found.batch_shape
    for number, element in enumerate(elements):
        assert_array_equal(np.asarray(found[np.unravel_index(number, shape)]), element)
    counts = np.asarray(found.counts)
    assert counts.tolist() == [len(element) for element in elements]
    packed = found.packed()
    assert packed.is_packed
    assert int(packed.offsets[0]) == 0
    assert int(packed.offsets[-1]) == len(packed.values) == sum(counts)
    assert_array_equal(np.asarray(packed.values), np.concatenate([packed.values[:0], *elements]))
    assert_array_equal(np.asarray(found.segment_ids()), np.repeat(np.arange(len(elements)), counts))
    rows, mask = (np.asarray(each) for each in found.padded())
    assert rows.shape == (*shape, max([0, *counts]), *found.feature_shape)
    for number, element in enumerate(elements):
        place = np.unravel_index(number, shape)
        assert_array_equal(rows[place][mask[place]], element)
        assert mask[place].tolist() == [True] * len(element) + [False] * (
            mask.shape[-1] - len(element)
        )
        assert not rows[place][~mask[place]].any()


lengths_lists = st.lists(st.integers(0, CAPACITY), min_size=1, max_size=6)


@each_library
@given(lengths_lists, st.data())
def test_jagged_is_a_list_of_arrays(convert: Any, lengths: list[int], data: st.DataObject) -> None:
    elements = elements_of(lengths)
    order = data.draw(st.permutations(range(len(lengths))))
    start, stop = data.draw(st.tuples(st.integers(-7, 7), st.integers(-7, 7)))
    step = data.draw(st.sampled_from([-2, -1, 1, 2]))
    picks = data.draw(st.lists(st.integers(-len(lengths), len(lengths) - 1), max_size=4))
    for jagged in (Jagged.of(elements), in_slots(elements), in_slots(elements, order)):
        found = convert(jagged)
        check_equal(found, elements)
        check_equal(found[start:stop:step], elements[start:stop:step])
        check_equal(found[start:stop][1:], elements[start:stop][1:])
        check_equal(found[np.array(picks, int)], [elements[number] for number in picks])
        assert len(list(found)) == len(elements)


@each_library
def test_a_batch_shape_counts_elements_in_c_order(convert: Any) -> None:
    elements = elements_of([1, 0, 3, 2, 5, 4])
    slots = in_slots(elements)
    jagged = convert(Jagged(slots.values, slots.offsets, slots.lengths, (2, 3)))
    check_equal(jagged, elements)
    check_equal(jagged[1], elements[3:])
    check_equal(jagged[:, 1], [elements[1], elements[4]])
    assert jagged[:, 1:].batch_shape == (2, 2)
    assert_array_equal(np.asarray(jagged[1, 1]), elements[4])
    assert len(jagged) == 2


@each_library
def test_elements_and_conversions_share_memory(convert: Any) -> None:
    jagged = Jagged.of(elements_of([2, 3]))
    found = convert(jagged)
    found[1][0] = 7
    assert_array_equal(jagged.values[2], [7, 7])
    assert found.packed() is found
    assert np.shares_memory(found.to_ndarray().values, jagged.values)
    if convert is Jagged.to_torch:
        assert found.nested().values().data_ptr() == jagged.values.ctypes.data


@given(lengths_lists)
def test_nested_tensors_see_no_row_between_elements(lengths: list[int]) -> None:
    elements = elements_of(lengths)
    for jagged in (Jagged.of(elements), in_slots(elements)):
        nested = jagged.nested()
        assert nested.layout == torch.jagged
        assert_array_equal(nested.sum(), torch.from_numpy(np.concatenate(elements)).sum())
        for found, element in zip(nested.unbind(), elements, strict=True):
            assert_array_equal(found, element)
    without_copy = in_slots(elements).nested(copy=False)
    assert_array_equal(without_copy.unbind()[-1], elements[-1])


def test_nested_copies_where_it_is_told_to() -> None:
    jagged = Jagged.of(elements_of([2, 3]))
    assert jagged.nested(copy=True).values().data_ptr() != jagged.values.ctypes.data


def test_gradients_reach_the_values_of_elements_only() -> None:
    jagged = in_slots(elements_of([2, 0, 3])).to_torch()
    values = jagged.values.requires_grad_()
    Jagged(values, jagged.offsets, jagged.lengths).padded()[0].sum().backward()
    assert values.grad is not None
    expected = [[1] * 2 + [0] * 3, [0] * 5, [1] * 3 + [0] * 2]
    assert values.grad[:, 0].reshape(3, CAPACITY).tolist() == expected


def test_padding_has_a_length_and_a_fill() -> None:
    rows, mask = in_slots(elements_of([1, 2])).padded(4, -1)
    assert rows.shape == (2, 4, 2)
    assert (rows[~mask] == -1).all()
    with pytest.raises(ValueError, match="longest: got 1, expected at least 2"):
        in_slots(elements_of([1, 2])).padded(1)


@pytest.mark.parametrize(
    ("values", "offsets", "lengths", "error", "message"),
    [
        (np.zeros((3, 2)), [0, 4], None, ValueError, "element 0: got 4 rows from row 0"),
        (np.zeros((3, 2)), [0, 2, 1], None, ValueError, "element 1: got -1 rows"),
        (np.zeros((3, 2)), [-1, 1], None, ValueError, "element 0: got 2 rows from row -1"),
        (np.zeros((3, 2)), [0, 2, 4], [2, 2], ValueError, "element 1: got 2 rows from row 2"),
        (np.zeros((3, 2)), [0, 2, 4], [2], ValueError, "lengths: got 1, expected 2"),
        (np.zeros(()), [0], None, ValueError, "values: got a single number"),
        (np.zeros((3, 2)), [], None, ValueError, "offsets: got none"),
        (np.zeros((3, 2)), [[0]], None, ValueError, "offsets: got shape"),
    ],
)
def test_what_is_outside_the_values_is_refused(
    values: Any, offsets: Any, lengths: Any, error: type[Exception], message: str
) -> None:
    as_counts = None if lengths is None else np.array(lengths, np.int64)
    with pytest.raises(error, match=message):
        Jagged(values, np.array(offsets, np.int64), as_counts)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="offsets: got int32, expected int64"):
        Jagged(np.zeros(3), np.zeros(1, np.int32))
    with pytest.raises(TypeError, match="expected those of one library"):
        Jagged(torch.zeros(3), np.zeros(1, np.int64))
    with pytest.raises(TypeError, match="values: got list"):
        Jagged([1], np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"batch_shape: got \(2,\), expected a shape of 1 "):
        Jagged(np.zeros(3), np.array([0, 1]), None, (2,))
    with pytest.raises(ValueError, match="elements: got none"):
        Jagged.of([])
    with pytest.raises(ValueError, match="element 1: got shape"):
        Jagged.of([np.zeros((2, 3)), np.zeros((2, 4))])


@each_library
def test_graphs_become_one_graph(convert: Any) -> None:
    nodes = elements_of([3, 0, 2])
    links = [np.array([[0, 1], [2, 0], [1, 1]]), np.zeros((0, 2), int), np.array([[1, 0]])]
    batch = batch_graphs(convert(in_slots(nodes)), convert(Jagged.of(links, "int32")))
    assert_array_equal(np.asarray(batch.x), np.concatenate(nodes))
    assert np.asarray(batch.batch).tolist() == [0, 0, 0, 2, 2]
    assert np.asarray(batch.edge_index).tolist() == [[0, 2, 1, 4], [1, 0, 1, 3]]
    assert str(batch.edge_index.dtype).endswith("int64")


@each_library
def test_links_to_other_graphs_are_refused(convert: Any) -> None:
    nodes = convert(Jagged.of(elements_of([3, 2])))
    with pytest.raises(ValueError, match=r"of graph 1: got a link \[0, 2\], expected .* its 2 nod"):
        batch_graphs(nodes, convert(Jagged.of([np.array([[2, 2]]), np.array([[0, 2]])])))
    with pytest.raises(ValueError, match=r"got those of graphs \(1,\), expected \(2,\)"):
        batch_graphs(nodes, convert(Jagged.of([np.array([[2, 2]])])))
    with pytest.raises(TypeError, match=r"got .*float64, expected integers"):
        batch_graphs(nodes, convert(Jagged.of([np.zeros((1, 2))] * 2)))
    with pytest.raises(ValueError, match=r"got rows of shape \(3,\)"):
        batch_graphs(nodes, convert(Jagged.of([np.zeros((1, 3), int)] * 2)))


def test_torch_geometric_makes_the_same_batch() -> None:
    geometric = pytest.importorskip("torch_geometric.data", reason="needs torch-geometric")
    nodes = elements_of([3, 1, 2])
    links = [np.array([[0, 1], [2, 0]]), np.array([[0, 0]]), np.array([[1, 0]])]
    batch = batch_graphs(Jagged.of(nodes).to_torch(), Jagged.of(links).to_torch())
    theirs = geometric.Batch.from_data_list(
        [
            geometric.Data(x=torch.from_numpy(x), edge_index=torch.from_numpy(link.T.copy()))
            for x, link in zip(nodes, links, strict=True)
        ]
    )
    assert_array_equal(batch.x, theirs.x)
    assert_array_equal(batch.batch, theirs.batch)
    assert_array_equal(batch.edge_index, theirs.edge_index)
