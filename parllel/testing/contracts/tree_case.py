"""TreeCase: how contracts make trees of Arrays in memory of one kind, and how they read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from parllel.arrays import Array, ArraySpec
from parllel.testing.contracts.array_case import ArrayCase
from parllel.tree import ArrayDict, allocate_tree, dict_map, path_text

T, B = 10, 5
Forms: TypeAlias = dict[str, Any]
"""(dtype, feature_shape, seed of the values) for each leaf of a tree; or more of such trees."""

PATHS = ["observation", "action.pinky", "action.the_brain", "done"]
SPECS: dict[str, Any] = {
    "observation": (np.float32, (4,)),
    "action": {"pinky": (np.int64, ()), "the_brain": (np.float32, (2,))},
    "done": (bool, ()),
}

FORMS = st.recursive(
    st.tuples(
        st.sampled_from([np.float32, np.int64, np.uint8, bool]),
        st.sampled_from([(), (2,), (1, 2)]),
        st.integers(0, 99),
    ),
    lambda branch: st.dictionaries(st.text("abc_ü<", min_size=1, max_size=2), branch, max_size=3),
)
TREES = st.dictionaries(st.text("abc_ü<", min_size=1, max_size=2), FORMS, max_size=4)


class TreeCase(ArrayCase):
    """Trees of Arrays in memory of one kind."""

    def tree(self, **window: Any) -> ArrayDict:
        """Return a tree of observations, actions and flags, [10, 5, ...], all numbered."""

        def spec(form: tuple[Any, tuple[int, ...]]) -> ArraySpec:
            return self.spec((T, B), form[0], feature_shape=form[1], **window)

        return numbered(allocate_tree(dict_map(spec, SPECS), self.storage))

    def tree_of(self, forms: Forms) -> ArrayDict:
        """Return a tree of Arrays [4, 3, ...], each in memory of its own, with random values."""

        def leaf(form: tuple[Any, tuple[int, ...], int]) -> Array:
            dtype, feature_shape, seed = form
            array = self.array((4, 3), dtype, feature_shape=feature_shape)
            values = np.random.default_rng(seed).integers(0, 200, array.shape)
            array[...] = values.astype(dtype)
            return array

        return ArrayDict(forms).apply(leaf)

    def values(self, tree: ArrayDict) -> dict[str, Any]:
        """Return the values of all leaves by their paths, after the work that writes them."""
        self.settle()
        return leaves(tree.to_ndarray())

    def assert_holds(self, tree: ArrayDict, expected: ArrayDict | Mapping[str, Any]) -> None:
        """Check the names, dtypes and values of a tree, given as a tree or by paths."""
        got = self.values(tree)
        wanted = self.values(expected) if isinstance(expected, ArrayDict) else expected
        assert list(got) == list(wanted)
        for path, values in got.items():
            assert_array_equal(values, wanted[path], err_msg=path, strict=True)


def leaves(tree: ArrayDict) -> dict[str, Any]:
    """Return the leaves of a tree by the text of their paths."""
    return {path_text(path): leaf for path, leaf in tree.walk()}


def numbered(tree: ArrayDict) -> ArrayDict:
    """Give every element of every leaf a number of its own within its leaf."""
    for _, leaf in tree.walk():
        leaf[...] = np.arange(leaf.size).reshape(leaf.shape) % (2 if leaf.dtype == bool else 10**6)
    return tree
