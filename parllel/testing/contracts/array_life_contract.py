"""ArrayLifeContract: copies, pickles, and the end of Arrays."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from parllel.arrays import Array
from parllel.storages import KINDS
from parllel.testing.contracts.array_case import ArrayCase, clone, values_of, whole
from parllel.testing.contracts.array_window_contract import each_view


class ArrayLifeContract(ArrayCase):
    """Arrays are copied, sent to other processes, closed and dropped."""

    # Copies

    @pytest.mark.parametrize("n_rotations", range(4))
    def test_a_copy_has_its_own_rows_padding_and_window(self, n_rotations: int) -> None:
        for copier in self.copiers:
            array = self.array((2, 3), np.int32, feature_shape=(2,), padding=1, full_size=6)
            base = whole(array)
            base[...] = np.arange(base.size).reshape(base.shape)
            for _ in range(n_rotations):
                array.rotate()
            other = copier(array)
            assert (other.spec, other.storage) == (array.spec, self.storage)
            for _ in range(4):
                self.assert_shows(other, array)
                self.assert_shows(whole(other), whole(array))
                array.rotate()
                other.rotate()
            other[...] = -1
            assert not (self.read(base) == -1).any()

    @each_view
    def test_a_copy_of_a_view_has_its_own_values(self, view_of: Callable[[Array], Array]) -> None:
        array = self.counted(padding=1, full_size=10)
        view = view_of(array)
        for copier in self.copiers:
            other = copier(view)
            self.assert_shows(other, view)
            shapes = view.batch_shape, view.feature_shape
            assert (other.batch_shape, other.feature_shape) == shapes
            assert other.storage == self.storage
            other[...] = -1
            self.assert_shows(array, np.arange(20).reshape(5, 4))
            self.assert_shows(other, np.full(view.shape, -1))

    def test_a_copy_of_a_view_keeps_features_apart_from_batch_dimensions(self) -> None:
        array = self.array((5, 4), feature_shape=(3, 2))
        array[...] = np.arange(120).reshape(5, 4, 3, 2)
        views = [array[1:], array[2], array[2, 1], array[[0, 1]]]
        if self.indexes_features:
            views += [array[2, 1, 0], array[:, :, 1]]
        for view in views:
            for copier in self.copiers:
                other = copier(view)
                self.assert_shows(other, view)
                shapes = view.batch_shape, view.feature_shape
                assert (other.batch_shape, other.feature_shape) == shapes
                self.assert_shows(other[...], view)

    def test_arrays_of_every_dtype_are_copied(self) -> None:
        for dtype in self.dtypes:
            array = self.array((4, 2), dtype, padding=1)
            values = np.arange(8).astype("i4" if "," in dtype else dtype).reshape(4, 2)
            array[...] = values
            for view in (array, array[1:3], array[2, 1], array[[0, 3]]):
                for copier in self.copiers:
                    other = copier(view)
                    assert other.dtype == view.dtype
                    self.assert_shows(other, view)

    def test_a_copy_of_one_element_has_neither_next_nor_previous(self) -> None:
        for copier in self.copiers:
            for element in (copier(self.counted()[1, 1]), copier(self.counted()[1, 1, ...])):
                for name in ("next", "previous"):
                    with pytest.raises(IndexError, match=f"{name}: "):
                        getattr(element, name)

    def test_it_moves_to_memory_of_another_kind_and_back(self) -> None:
        array = self.counted(padding=2, full_size=10)
        array[-2:0], array[5:7] = -1, -2
        array.rotate()
        for kind in KINDS if self.is_for_gpu else ("local", "shared", "inherited", self.storage):
            there = array.to(kind)
            back = there.to(self.storage)
            assert (there.storage, there.spec) == (kind, array.spec)
            assert (back.storage, back.spec) == (self.storage, array.spec)
            for other in (there, back):
                self.assert_shows(other, array)
                self.assert_shows(whole(other), whole(array))
            self.assert_shows(array[::-1, [0, 2]].to(kind), array[::-1, [0, 2]])
            self.assert_shows(array[1, 2].to(kind), array[1, 2])

    def test_copy_copy_is_a_view(self) -> None:
        array = self.counted(padding=1)
        for view in (array, array[1:3], array[2, 2], array[[0, 1]]):
            other = copy.copy(view)
            other[...] = -1
            self.assert_shows(view, np.full(view.shape, -1))
            with pytest.raises(TypeError):
                other.rotate()

    # Pickles

    def test_a_pickle_carries_what_the_memory_sends(self) -> None:
        array = self.counted(padding=1)
        for view in (array, array[1:3], array[[0, 1]], array[2, 2]):
            if self.sends == "nothing":
                with pytest.raises(ValueError, match="can't be sent to another process"):
                    pickle.dumps(view)
                continue
            other = clone(view)
            self.assert_shows(other, view)
            expected = self.read(view).copy()
            other[...] = -1
            self.assert_shows(
                view, expected if self.sends == "values" else np.full_like(expected, -1)
            )

    def test_a_closed_array_cannot_be_sent(self) -> None:
        array = self.counted()
        view = array[0]
        array.close()
        for closed in (array, view):
            with pytest.raises(ValueError, match="closed"):
                pickle.dumps(closed)

    # The end

    def test_a_view_keeps_the_memory_of_its_parent(self) -> None:
        array = self.counted()
        view, gone = array[2], weakref.ref(array)
        del array
        assert gone() is None
        self.assert_shows(view, [8, 9, 10, 11])

    def test_a_row_that_was_read_before_is_closed_with_its_array(self) -> None:
        array = self.counted()
        rows = [array[1], array[1, 2], array[1:2], array[[1]]]
        shown = [row.to_ndarray() for row in rows]
        steps = [array[1].next, array[1].previous]
        array.close()
        for row in (*rows, *steps):
            with pytest.raises(ValueError, match="closed"):
                row.to_ndarray()
            with pytest.raises(ValueError, match="closed"):
                row[...] = 0
        assert_array_equal(shown[0], [4, 5, 6, 7])  # what was taken before stays valid

    def test_close_is_idempotent_and_a_closed_array_still_tells_what_it_was(self) -> None:
        array = self.counted(padding=1)
        ndarray, tensor = array.to_ndarray(), array.to_torch()
        array.close()
        array.close()
        told = array.shape, array.dtype, array.storage, len(array)
        assert told == ((5, 4), np.dtype("f4"), self.storage, 5)
        assert "Array(closed, " in repr(array)
        assert_array_equal(ndarray, np.arange(20).reshape(5, 4))
        assert_array_equal(values_of(tensor), ndarray)

    def test_what_was_taken_before_outlives_a_closed_array_that_is_dropped(self) -> None:
        array = self.counted()
        ndarray, tensor = array[1:3].to_ndarray(), array[1:3].to_torch()
        array.close()
        del array
        assert_array_equal(ndarray, np.arange(4, 12).reshape(2, 4))
        assert_array_equal(values_of(tensor), ndarray)
        tensor[...] = 0
        if self.is_on_host:
            self.settle()
            ndarray[...] = 1

    def test_closing_a_view_closes_that_view_alone(self) -> None:
        array = self.counted()
        view, other = array[1:3], array[1:3]
        below = view[0]
        view.close()
        view.close()
        with pytest.raises(ValueError, match="closed"):
            view.to_ndarray()
        with pytest.raises(ValueError, match="closed"):
            view[0] = 1
        for open_one in (array[1:3], other, array):
            open_one[0] = -1
        self.assert_shows(below, [-1, -1, -1, -1])

    def test_a_context_manager_closes_the_array(self) -> None:
        with self.counted() as array:
            view = array[0]
            self.assert_shows(view, [0, 1, 2, 3])
        with pytest.raises(ValueError, match="closed"):
            view.to_ndarray()
        with pytest.raises(KeyError), self.counted() as array:  # also when the block raises
            raise KeyError
        with pytest.raises(ValueError, match="closed"):
            array.to_ndarray()

    def test_arrays_are_told_apart_by_identity_and_not_compared(self) -> None:
        array = self.counted()
        same = array
        for other in (same, self.counted(), 1, "text", ...):
            with pytest.raises(TypeError, match=r"`==` between an Array and a .*to_ndarray"):
                assert array == other
            with pytest.raises(TypeError, match="`==` between"):
                assert array != other
        assert len({array, same, array[0], array[0]}) == 3

    def test_no_array_is_none(self) -> None:
        array = self.counted()
        is_none, is_other = array == None, array != None  # noqa: E711  # as a sentinel asks it
        assert (is_none, is_other) == (False, True)
        assert None not in [array, array[0]]
        queue = iter([array, array[0], None])
        assert len(list(iter(queue.__next__, None))) == 2

    def test_numpy_never_takes_equal_arrays_for_different_ones(self) -> None:
        array = self.counted()
        if array.is_on_host:
            assert np.array_equal(array, self.counted())
            assert not np.array_equal(array, array.to_ndarray() + 1)
            joined = np.concatenate([array.to_ndarray(), array])
            np.testing.assert_array_equal(joined, [*array.to_ndarray()] * 2)
        else:
            for pair in ((array, array), (array.to_ndarray(), array)):
                with pytest.raises(TypeError, match="to_ndarray"):
                    np.array_equal(*pair)
