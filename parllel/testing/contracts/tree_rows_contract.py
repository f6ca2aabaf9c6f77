"""TreeRowsContract: how trees of Arrays are read and written, all leaves at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from parllel.testing.contracts.array_case import values_of
from parllel.testing.contracts.tree_case import TREES, B, Forms, T, TreeCase, leaves
from parllel.testing.contracts.tree_values import CONVERTERS, new_values
from parllel.tree import ArrayDict

# Indices of what has two leading dimensions of at least 4 and 3.
INDICES: tuple[Any, ...] = (
    *(0, 3, (1, 2), slice(1, 3), (slice(None), 0), ..., (..., 0), (slice(None, None, -2), 1)),
    *(np.array([2, 0, 2]), ([0, 3], [1, 2]), [3, 1], (slice(1, 3), [2, 0]), np.array([], int)),
)
each_index = pytest.mark.parametrize("index", INDICES, ids=str)


class TreeRowsContract(TreeCase):
    """Indices and values reach every leaf of a tree of Arrays."""

    def need(self, index: object) -> None:
        """Skip a test of an index that Arrays of this kind do not have."""
        if self.reaches_features(index) and not self.indexes_features:
            pytest.skip("this kind of Array has no indices of features")

    @staticmethod
    def reaches_features(index: object) -> bool:
        """Tell whether an index among `INDICES` reaches the last dimension of each leaf."""
        return isinstance(index, tuple) and index[0] is ...

    # Reading and writing

    def test_a_scalar_is_written_into_every_leaf(self) -> None:
        tree = self.tree()
        tree[...] = 0
        tree[0, 1] = 3
        for path, values in self.values(tree).items():
            assert (values[0, 1] == (1 if path == "done" else 3)).all()
            assert values.astype(bool).sum() == values[0, 1].size

    @each_index
    def test_an_index_goes_to_every_leaf(self, index: object) -> None:
        self.need(index)
        tree = self.tree()
        expected = {path: values[index] for path, values in self.values(tree).items()}
        self.assert_holds(tree[index], expected)

    @each_index
    def test_an_index_is_written_in_every_leaf(self, index: object) -> None:
        self.need(index)
        tree, source = self.tree(), self.tree()
        tree[...] = 0
        expected = self.values(tree.apply(copy.deepcopy))
        for path, values in self.values(source).items():
            expected[path] = expected[path].copy()
            expected[path][index] = values[index]
        tree[index] = source[index]
        self.assert_holds(tree, expected)
        tree[...] = 0
        tree[index] = source[index].to_ndarray()
        self.assert_holds(tree, expected)
        tree[...] = 0
        tree[index] = 1
        for path, values in self.values(tree).items():
            assert (values[index] == 1).all(), path

    def test_a_mask_goes_to_every_leaf(self) -> None:
        tree = self.tree()
        mask = np.random.default_rng(0).random((T, B)) < 0.5
        expected = {path: values[mask] for path, values in self.values(tree).items()}
        self.assert_holds(tree[mask], expected)
        tree[mask] = 0
        for path, values in self.values(tree).items():
            assert not values[mask].any(), path
            assert values[~mask].any(), path

    def test_a_part_of_a_tree_is_a_view_of_it(self) -> None:
        tree = self.tree()
        tree[...] = 0
        tree[3][1] = 1
        tree[np.array([0, 2])][...] = 1
        for path, values in self.values(tree).items():
            rows = np.flatnonzero(values.reshape(T, -1).any(axis=1))
            assert_array_equal(rows, [0, 2, 3], err_msg=path)

    def test_rows_that_are_picked_twice_get_one_of_their_values(self) -> None:
        tree = self.tree()
        rows = np.array([2, 0, 2])
        tree[rows] = {
            path: {"pinky": np.array([5, 6, 7])[:, None], "the_brain": 8} if path == "action" else 1
            for path in tree
        }
        values = self.values(tree)
        assert (values["action.pinky"][0] == 6).all()
        assert set(values["action.pinky"][2]) <= {5, 7}
        assert (values["action.the_brain"][rows] == 8).all()

    def test_indexing_a_tree_is_indexing_its_leaves(self) -> None:
        def law(forms: Forms, index: object) -> None:
            assume(self.reaches_features(index) <= self.indexes_features)
            tree = self.tree_of(forms)
            expected = {path: values[index] for path, values in self.values(tree).items()}
            got = self.values(tree[index])
            assert list(got) == list(expected)
            for path, values in expected.items():
                assert_array_equal(got[path], values, err_msg=path)

        self.hold(law, TREES, st.sampled_from(INDICES))

    def test_what_was_written_into_a_tree_is_read_from_it(self) -> None:
        def law(forms: Forms, index: object) -> None:
            assume(self.reaches_features(index) <= self.indexes_features)
            tree = self.tree_of(forms)
            other = tree.new_array()
            other[index] = tree[index]
            self.assert_holds(other[index], tree[index])
            other[...] = tree.to_torch()
            self.assert_holds(other, tree)

        self.hold(law, TREES, st.sampled_from(INDICES))

    @pytest.mark.parametrize("convert", CONVERTERS)
    @pytest.mark.parametrize("index", [2, [2], (slice(2, 3), slice(None))], ids=str)
    def test_named_values_are_written_by_name(
        self, index: object, convert: Callable[[dict[str, Any]], Any]
    ) -> None:
        tree, values = self.tree(), new_values(B)
        before = {path: values.copy() for path, values in self.values(tree).items()}
        tree[index] = convert(values)
        self.assert_holds(tree[2], ArrayDict(values))
        elsewhere = np.arange(T) != 2
        for path, after in self.values(tree).items():
            assert_array_equal(after[elsewhere], before[path][elsewhere], err_msg=path)

    def test_one_array_is_written_into_every_leaf_by_numpys_rules(self) -> None:
        tree = ArrayDict({"a": self.array((3, 2)), "b": {"c": self.array((3, 2), np.int32)}})
        tree[1] = np.array([7, 8])
        for _, leaf in tree.walk():
            self.assert_shows(leaf, [[0, 0], [7, 8], [0, 0]])
        tree["b"][2] = [1, 2]
        tree[[0]] = torch.tensor([[3.0, 4.0]])
        self.assert_shows(tree["b"]["c"], [[3, 4], [7, 8], [1, 2]])

    def test_to_torch_shares_memory(self) -> None:
        tree = self.tree()
        tensors = tree[0].to_torch()
        tensors[1] = 0
        tensors[2] = 1
        for path, values in self.values(tree).items():
            assert not values[0, 1].any(), path
            assert (values[0, 2] == 1).all(), path

    def test_to_torch_of_picked_rows_is_a_copy(self) -> None:
        tree = self.tree()
        expected = {path: values[[4, 1, 4]] for path, values in self.values(tree).items()}
        tensors = tree[[4, 1, 4]].to_torch()
        for path, tensor in leaves(tensors).items():
            assert_array_equal(values_of(tensor), expected[path], err_msg=path)
        tensors[...] = 0
        self.assert_holds(tree[[4, 1, 4]], expected)
