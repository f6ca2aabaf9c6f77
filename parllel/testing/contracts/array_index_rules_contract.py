"""ArrayIndexRulesContract: single indices written out, which hold without the model of indices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parllel.arrays import Array
from parllel.testing.contracts.array_case import ArrayCase
from parllel.testing.contracts.index_examples import FAR


class ArrayIndexRulesContract(ArrayCase):
    """Single indices lead to the elements that are written out here, or are refused."""

    def numbered(self, T: int = 5, B: int = 4, **options: int) -> Array:
        """Return an Array whose element at [t, b] is 10 * t + b."""
        array = self.array((T, B), np.int32, **options)
        steps = np.arange(-array.padding, T + array.padding)
        array[-array.padding : T + array.padding] = 10 * steps[:, None] + np.arange(B)
        return array

    # Where an index leads

    def test_a_negative_index_lies_before_the_beginning(self) -> None:
        array = self.numbered(padding=2)
        assert array[-2, 0].item() == -20
        assert array[2:5][-1, 0].item() == 10
        assert array[2:5][-4, 0].item() == -20

    def test_an_index_counts_in_the_views_own_direction(self) -> None:
        array = self.numbered(padding=1)
        assert array[::-1][0, 0].item() == 40
        assert array[::-1][-1, 0].item() == 50
        assert array[1::2, 0][2].item() == 50

    def test_a_slice_reaches_into_the_padding_and_is_cut_off_at_the_ends_of_the_base(self) -> None:
        array = self.numbered(padding=1)
        assert array[-1:1, 0].to_ndarray().tolist() == [-10, 0]
        assert array[-100:100, 0].to_ndarray().tolist() == [-10, 0, 10, 20, 30, 40, 50]
        assert array[100:].shape == (0, 4)
        assert array[:100, 3].to_ndarray().tolist() == [3, 13, 23, 33, 43, 53]

    def test_a_slice_is_cut_off_where_the_views_own_grid_leaves_the_base(self) -> None:
        array = self.numbered(padding=1)
        assert array[::2][-1:, 0].to_ndarray().tolist() == [0, 20, 40]  # row -2 is outside
        assert array[1::2][-1:, 0].to_ndarray().tolist() == [-10, 10, 30]  # from row -1

    def test_a_slice_that_begins_behind_its_end_is_empty(self) -> None:
        array = self.numbered(padding=1)
        for empty in (
            np.s_[-9:1:-1],
            np.s_[2:2],
            np.s_[4:1],
            np.s_[9:-9],
            np.s_[-1:-9],
            np.s_[9:9:-1],
        ):
            assert array[empty].shape == array[empty].to_ndarray().shape == (0, 4)

    def test_an_element_of_one_dimension_is_a_view(self) -> None:
        array = self.array((5,), np.int32)
        element = array[2]
        assert element.shape == ()
        element[...] = 7
        element[...] = element.to_ndarray() + 1
        assert array.to_ndarray().tolist() == [0, 0, 8, 0, 0]

    def test_the_column_of_an_element_is_counted_in_its_view(self) -> None:
        array = self.numbered(padding=1)
        assert array[:, 1:][2, 1].next.item() == 32
        assert array[:, ::-1][2, 0].previous.item() == 13
        assert array[1:, [0, 3]].next[...].to_ndarray().tolist()[0] == [20, 23]

    def test_columns_have_no_padding(self) -> None:
        array = self.numbered(padding=1)
        with pytest.raises(IndexError):
            array[0, -1]
        with pytest.raises(IndexError):
            array[0, 4]
        assert array[0, 1:3][-1].item() == 0

    def test_an_integer_of_an_earlier_index_does_not_join_the_arrays_of_a_later_one(self) -> None:
        array = self.array((2, 3, 4), np.int32)
        assert array[0][:, [0, 1]].shape == np.zeros((2, 3, 4))[0][:, [0, 1]].shape == (3, 2)
        assert array[0, :, [0, 1]].shape == np.zeros((2, 3, 4))[0, :, [0, 1]].shape == (2, 3)

    def test_next_keeps_an_integer_beside_arrays_joined_to_them(self) -> None:
        array = self.array((3, 4), np.int32, feature_shape=(5,))
        view = array[0, :, [0, 1, 2]]
        assert view.next.shape == view.next.to_ndarray().shape == view.shape == (3, 4)
        assert view.next.batch_shape == view.batch_shape

    def test_arrays_apart_bring_their_dimensions_to_the_front(self) -> None:
        array = self.array((3, 4, 5), np.int32)
        assert array[[[0], [1]], :, [0, 1]].shape == (2, 2, 4)
        assert array[:, [0, 1], [2, 3]].shape == (3, 2)

    def test_an_ellipsis_of_no_dimension_sets_arrays_apart_as_in_numpy(self) -> None:
        array, ndarray = self.array((3, 4, 5), np.int32), np.zeros((3, 4, 5))
        assert array[:, [0, 1], [2, 3]].shape == ndarray[:, [0, 1], [2, 3]].shape == (3, 2)
        view = array[:, [0, 1], ..., [2, 3]]
        assert view.shape == ndarray[:, [0, 1], ..., [2, 3]].shape == (2, 3)
        assert view.to_ndarray().shape == (2, 3)

    def test_dimensions_of_arrays_on_features_are_no_batch_dimensions_at_the_front(self) -> None:
        array = self.array((2, 3), np.int32, feature_shape=(4, 5, 6))
        view = array[:, :, [0, 1], :, [0, 1]]
        assert (view.batch_shape, view.feature_shape) == ((), (2, 2, 3, 5))

    def test_arrays_on_batch_axes_make_batch_dimensions(self) -> None:
        array = self.array((5, 4), np.int32, feature_shape=(3,))
        assert array[[0, 1, 2], [0, 1, 2]].batch_shape == (3,)
        assert array[[[0], [1]], [0, 1, 2]].batch_shape == (2, 3)
        assert array[np.ones((5, 4), bool)].batch_shape == (20,)
        assert array[2, [0, 1]].batch_shape == (2,)

    def test_an_integer_beside_an_array_on_features_makes_no_batch_dimension(self) -> None:
        array = self.array((5,), np.int32, feature_shape=(3,))
        assert array[2, [0, 1]].batch_shape == array[2][[0, 1]].batch_shape == ()

    # Errors

    @pytest.mark.parametrize(
        "index",
        [
            *(None, np.newaxis, True, np.True_, 1.0, np.float32(1), "0", b"0", 1j, object()),
            *(
                {0: 1},
                {0},
                [0.5],
                ["a"],
                [None],
                (0, None),
                (0, True),
                np.array(True),
                (slice(0), "x"),
            ),
            *(FAR * np.ones(1, object), np.zeros(2), [[0.0]]),
        ],
    )
    def test_an_index_of_another_kind_raises_index_error(self, index: object) -> None:
        array = self.numbered()
        with pytest.raises(IndexError, match="expected integers"):
            array[index]
        with pytest.raises(IndexError, match="expected integers"):
            array[index] = 0

    @pytest.mark.parametrize(
        "index", [5, -2, (0, 4), (0, -1), [0, 5], (slice(None), [0, 4]), (0, [4])]
    )
    def test_an_integer_outside_the_base_raises_index_error(self, index: object) -> None:
        array = self.numbered(padding=1)
        index = 6 if isinstance(index, int) and index > 0 else index
        index = [0, 6] if isinstance(index, list) else index
        with pytest.raises(IndexError, match="outside the base buffer"):
            array[index]
        with pytest.raises(IndexError, match="outside the base buffer"):
            array[index] = 0

    @pytest.mark.parametrize("step", [1, 2, 3, -1, -2, -3])
    def test_the_error_of_an_integer_outside_tells_the_ends_that_are_legal(self, step: int) -> None:
        array = self.numbered(padding=2)
        for start in range(-2, 7):
            view = array[start::step]
            with pytest.raises(IndexError) as caught:
                view[FAR]
            ends = str(caught.value).split("expected ")[1].split(",")[0].split(" to ")
            at_least, at_most = map(int, ends)
            for index in (at_least, at_most):
                view[index]
            for outside in (at_least - 1, at_most + 1, [at_least - 1], [at_most + 1]):
                with pytest.raises(IndexError):
                    view[outside]

    @pytest.mark.parametrize(
        "index",
        [
            *(FAR, -FAR, (FAR, [0]), ([0], FAR), 2**62, [2**62], [-(2**62)]),
            *(
                np.array([2**63 - 1]),
                np.array([2**64 - 1], np.uint64),
                np.array([2**63], np.uint64),
            ),
            np.uint64(2**64 - 1),
        ],
    )
    def test_a_huge_integer_is_outside_and_never_wraps_around(self, index: object) -> None:
        array = self.array((8, 8), np.int32, padding=1)
        for view in (array, array[::4], array[::4, ::4], array[::-2]):
            with pytest.raises(IndexError):
                view[index]

    @pytest.mark.parametrize(
        ("index", "what"),
        [
            ((0, 0, 0), "too many indices"),
            ((..., 0, 0, 0), "too many indices"),
            ((..., ...), "twice|2 times"),
            (np.ones(4, bool), r"mask: got shape \(4,\), expected \(5,\)"),
            (np.ones((5, 3), bool), r"mask: got shape \(5, 3\), expected \(5, 4\)"),
            ((0, np.ones(5, bool)), r"mask: got shape \(5,\), expected \(4,\)"),
            (np.ones((5, 4, 1), bool), "too many indices"),
            ([True, False], "mask: got shape"),
            (([0, 1], [0, 1, 2]), r"shapes \(2,\) and \(3,\)"),
            ((np.ones(5, bool), np.ones(4, bool)), r"shapes \(5,\) and \(4,\)"),
        ],
    )
    def test_an_index_of_a_wrong_shape_raises_index_error(self, index: object, what: str) -> None:
        array = self.numbered()
        with pytest.raises(IndexError, match=what):
            array[index]
        with pytest.raises(IndexError, match=what):
            array[index] = 0

    def test_a_step_of_zero_raises_value_error(self) -> None:
        with pytest.raises(ValueError, match="step"):
            self.numbered()[::0]

    def test_other_things_that_numpy_takes_for_integers_are_taken(self) -> None:
        array = self.numbered()
        steps = Array.from_numpy([1, 3])
        assert array[torch.tensor(2), torch.tensor([1, 2])].to_ndarray().tolist() == [21, 22]
        assert array[torch.arange(5) == 2].to_ndarray().tolist() == [[20, 21, 22, 23]]
        assert array[steps, 0].to_ndarray().tolist() == [10, 30]
        assert array[steps[0], 0].item() == 10
        assert array[[]].shape == (0, 4)
        assert array[range(2), 0].to_ndarray().tolist() == [0, 10]
        own = steps.to(self.storage)
        if self.is_on_host:
            assert array[own, 0].to_ndarray().tolist() == [10, 30]
        else:  # the host has to check where an index leads
            with pytest.raises(TypeError, match=r"not converted implicitly: to_ndarray\(\)"):
                array[own, 0]
