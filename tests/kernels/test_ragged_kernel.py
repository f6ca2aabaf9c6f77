"""The ragged kernel on a CPU: elements of every length, against lists, and nothing beside them."""

import numpy as np
import pytest

from parllel.kernels.ragged import copy_element
from parllel.ops.ragged import PackedRows, RaggedGather
from parllel.ops.stack_gather import RowSource


def test_an_element_is_copied_with_no_byte_beside_it() -> None:
    source = np.arange(256, dtype=np.uint8) | 1
    for nbytes in range(150):
        output = np.zeros(nbytes + 2, np.uint8)
        copy_element(output.ctypes.data + 1, source.ctypes.data + 3, nbytes)
        assert output[1:-1].tolist() == source[3 : 3 + nbytes].tolist()
        assert output[0] == output[-1] == 0


@pytest.mark.parametrize("order", ["random", "shorter and shorter", "at last none"])
@pytest.mark.parametrize("item_nbytes", [1, 2, 3, 4, 12, 16, 20])
def test_elements_of_every_length_are_packed(item_nbytes: int, order: str) -> None:
    """Lines that are copied whole leave nothing in other elements, and nothing behind the last."""
    rng, capacity = np.random.default_rng(item_nbytes), 70
    slots = rng.integers(0, 255, (capacity + 1, capacity, item_nbytes), np.uint8)
    lengths = np.arange(capacity + 1)
    index = rng.permutation(capacity + 1)
    if order == "shorter and shorter":
        index = lengths[::-1].copy()
    elif order == "at last none":
        index[-20:] = 0
    values = np.full((len(index) * capacity, item_nbytes), 255, np.uint8)
    packed = PackedRows(values, np.zeros(len(index) + 1, np.int64))
    RaggedGather([RowSource(slots, lengths=lengths)], [packed]).run(index)
    expected = np.concatenate([slots[number, :number] for number in index])
    assert packed.offsets.tolist() == [0, *np.cumsum(index)]
    np.testing.assert_array_equal(values[: len(expected)], expected)
    assert (values[len(expected) :] == 255).all()


def test_whole_lines_end_before_the_last_element_does() -> None:
    slots, lengths = np.ones((140, 300), np.uint8), np.arange(140)
    for n_last in range(1, 140):
        values = np.zeros(900, np.uint8)
        gather = RaggedGather(
            [RowSource(slots, lengths=lengths)], [PackedRows(values, np.zeros(4, np.int64))]
        )
        gather.run(np.array([5, 0, n_last]))
        assert values[: 5 + n_last].all()
        assert not values[5 + n_last :].any()


@pytest.mark.parametrize("wrong", [-1, 4])
@pytest.mark.parametrize("place", [0, 2])
def test_a_length_that_is_none_of_a_slot_is_refused_before_anything_is_written(
    wrong: int, place: int
) -> None:
    lengths = np.array([1, 2, 3])
    lengths[place] = wrong
    packed = PackedRows(np.zeros(9), np.full(4, 7))
    gather = RaggedGather([RowSource(np.ones((3, 3)), lengths=lengths)], [packed])
    with pytest.raises(ValueError, match="an element's length is below 0, or beyond its slot"):
        gather.run(range(3))
    assert not packed.values.any()
    assert (packed.offsets == 7).all()
