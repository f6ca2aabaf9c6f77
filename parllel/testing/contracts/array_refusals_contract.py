"""ArrayRefusalsContract: the uses of Arrays that raise an error, and what the error says."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from parllel.arrays import Array
from parllel.testing.contracts.array_case import ArrayCase

USES: list[Callable[[Array], Any]] = [
    lambda array: array.to_ndarray(),
    lambda array: array.to_torch(),
    lambda array: array.__dlpack__(),
    lambda array: array.__dlpack_device__(),
    lambda array: array[0],
    lambda array: array[0, 1],
    lambda array: array[...],
    lambda array: array[[0, 1]],
    lambda array: list(array),
    lambda array: array.item(),
    bool,
    pickle.dumps,
    copy.deepcopy,
    copy.copy,
    lambda array: array.to("local"),
    lambda array: array.__setitem__(0, 1),
    lambda array: array.__setitem__((0, 1), 1),
    lambda array: array.__setitem__(..., 1),
    lambda array: array.__setitem__([0], 1),
    lambda array: array.next.to_ndarray(),
    lambda array: array.previous,
]


class ArrayRefusalsContract(ArrayCase):
    """Which uses of an Array are refused, whatever memory it lives in."""

    # Writing

    @pytest.mark.parametrize(
        ("index", "value", "got", "expected"),
        [
            (..., np.zeros(3), "(3,)", "(5, 4)"),
            (0, np.zeros(3), "(3,)", "(4)|(4,)"),
            ((0, 1), [1, 2], "(2,)", "sequence|()"),
            (slice(1, 3), np.zeros((3, 4)), "(3, 4)", "(2, 4)|(2,4)"),
            ([0, 1], np.zeros((3, 4)), "(3, 4)", "(2, 4)|(2,4)"),
            (np.ones((5, 4), bool), np.zeros(7), "(7,)", "(20,)"),
            (..., torch.zeros(3), "(3,)", "(5, 4)|(5,4)"),
            (0, Array((3,), np.float32), "(3,)", "(4)|(4,)"),
        ],
    )
    def test_a_value_of_a_wrong_shape_raises_an_error_with_both_shapes(
        self, index: object, value: object, got: str, expected: str
    ) -> None:
        array = self.counted()
        with pytest.raises(ValueError, match=r"^writing a value of shape") as caught:
            array[index] = value
        assert got in str(caught.value)
        # CuPy's words for what does not fit are its own; the Array's shape is always named.
        shapes = expected.split("|") if self.is_on_host else ["(5, 4)"]
        assert any(shape in str(caught.value) for shape in shapes)
        self.assert_shows(array, np.arange(20).reshape(5, 4))

    def test_a_ragged_list_is_an_error_that_names_the_array(self) -> None:
        array = self.array((2, 2))
        with pytest.raises(ValueError, match=r"writing a list of .* into an Array of shape"):
            array[...] = [[1, 2], [3]]

    def test_what_numpy_cannot_cast_is_refused(self) -> None:
        array = self.array((2,))
        for value in ("a word", object(), ["a", "b"]):
            with pytest.raises((TypeError, ValueError)):
                array[...] = value
        self.assert_shows(array, [0, 0])

    # Views

    @pytest.mark.parametrize("use", [Array.rotate, Array.reset, lambda array: array.full])
    def test_a_view_has_no_window(self, use: Callable[[Array], Any]) -> None:
        array = self.counted()
        for view in (array[...], array[1], array[[0]], array.full, array[2:3][0]):
            with pytest.raises(TypeError, match="this Array is a view"):
                use(view)

    @pytest.mark.parametrize("name", ["next", "previous"])
    def test_next_and_previous_outside_the_base_raise_index_error(self, name: str) -> None:
        array = self.counted()
        edge = -1 if name == "previous" else 1
        for view in (array, array[...], array[::edge], array[[0, 2, 4]], array.full):
            with pytest.raises(IndexError, match=f"{name}: .* base buffer of 5 rows.* padding=1"):
                getattr(view, name)
        with pytest.raises(IndexError, match=name):
            getattr(array[4 if name == "next" else 0, 1], name)

    # Closed Arrays

    @pytest.mark.parametrize("use", USES)
    @pytest.mark.parametrize("is_looked_at", [False, True])
    def test_a_closed_array_raises_value_error(
        self, is_looked_at: bool, use: Callable[[Array], Any]
    ) -> None:
        array = self.counted(padding=1)
        view = array[0:3]
        if is_looked_at:  # what was looked up before must not be used after
            for kept in (array, view):
                self.assert_shows(kept[0], [0, 1, 2, 3])
                kept[0, 0] = kept.to_ndarray()[0, 0]
        array.close()
        for closed in (array, view):
            with pytest.raises(ValueError, match="closed"):
                use(closed)

    @pytest.mark.parametrize("is_looked_at", [False, True])
    def test_a_closed_array_is_not_taken_by_numpy(self, is_looked_at: bool) -> None:
        array = self.counted()
        view = array[1:3]
        if is_looked_at:
            assert array.to_ndarray().shape != view.to_ndarray().shape
        array.close()
        error, words = (ValueError, "closed") if self.is_on_host else (TypeError, "not converted")
        for closed in (array, view):
            with pytest.raises(error, match=words):
                np.asarray(closed)
            with pytest.raises(ValueError, match="closed"):
                np.from_dlpack(closed)

    @pytest.mark.parametrize("use", [Array.rotate, Array.reset, lambda array: array.full])
    def test_a_closed_array_does_not_move(self, use: Callable[[Array], Any]) -> None:
        array = self.array((4,))
        array.close()
        with pytest.raises(ValueError, match="the Array is closed"):
            use(array)
