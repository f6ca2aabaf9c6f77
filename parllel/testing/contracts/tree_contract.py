"""TreeContract: the tests that trees of Arrays must pass in memory of every kind."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from parllel.storages import KINDS, Memory
from parllel.testing.contracts.array_case import clone, whole
from parllel.testing.contracts.tree_case import PATHS, TREES, Forms, T, leaves
from parllel.testing.contracts.tree_rows_contract import TreeRowsContract
from parllel.tree import ArrayDict, allocate_tree


class TreeContract(TreeRowsContract):
    """The promises of a tree of Arrays about its rows, its windows and its memory.

    To test a storage of your own, see `ArrayContract`.
    """

    # Windows

    def test_rotate_and_reset_reach_every_leaf(self) -> None:
        tree = ArrayDict(
            {
                "a": self.array((2,), np.int32, full_size=6),
                "b": {"c": self.array((2,), np.int32, full_size=6)},
            }
        )
        for batch in range(3):
            tree[...] = batch
            if batch < 2:
                tree.rotate()
        for _, leaf in tree.walk():
            self.assert_shows(leaf.full, [0, 0, 1, 1, 2, 2])
        tree.rotate()
        assert all(leaf[0].item() == 0 for _, leaf in tree.walk())
        tree.rotate()
        tree.reset()
        tree.rotate()
        assert all(leaf[0].item() == 0 for _, leaf in tree.walk())

    def test_a_tree_rotates_as_leaves_in_local_memory_do(self) -> None:
        forms: dict[str, tuple[Any, tuple[int, ...], int, int]] = {
            "image": (np.uint8, (5, 7), 1, 4),
            "state": (np.float64, (), 2, 4),
            "flag": (bool, (), 0, 4),
            "ring": (np.float32, (3,), 1, 8),
            "all": (np.int16, (), 4, 4),
        }
        specs = ArrayDict()
        for name, (dtype, feature_shape, padding, full_size) in forms.items():
            window = {"padding": padding, "full_size": full_size}
            specs[name] = self.spec((4, 3), dtype, feature_shape=feature_shape, **window)
        tree, apart = allocate_tree(specs, self.storage), allocate_tree(specs)
        for _ in range(5):
            for each in (tree, apart):
                for number, (_, leaf) in enumerate(each.walk()):
                    around = leaf[-leaf.padding : 4 + leaf.padding]
                    values = number + np.arange(around.size).reshape(around.shape) % 101
                    around[...] = values.astype(leaf.dtype)
            tree.rotate()
            for _, leaf in apart.walk():
                leaf.rotate()
            self.assert_holds(tree.apply(whole), apart.apply(whole))
            self.assert_holds(tree, apart)

    @pytest.mark.parametrize("what", ["rotate", "reset", "close"])
    def test_a_leaf_that_is_no_array_stops_nothing_halfway(self, what: str) -> None:
        ends = [self.array((4,), full_size=8) for _ in range(2)]
        tree = ArrayDict({"a": ends[0], "b": {"c": np.zeros(4)}, "d": ends[1]})
        with pytest.raises(TypeError, match=rf"^b\.c: {what} got a ndarray, expected an Array"):
            getattr(tree, what)()
        for array in ends:
            if what == "close":
                with pytest.raises(ValueError, match="the Array is closed"):
                    array[0] = 1
            else:
                array[0] = 1
                assert self.read(array.full)[0] == 1  # the window did not move

    # Memory

    def test_a_new_tree_lives_in_one_block_of_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        blocks: list[Memory] = []
        make_block = KINDS[self.storage]

        def counting(nbytes: int) -> Memory:
            blocks.append(make_block(nbytes))
            return blocks[-1]

        monkeypatch.setitem(KINDS, self.storage, counting)
        specs = {f"leaf_{number}": self.spec((3, 2)) for number in range(50)}
        tree = allocate_tree(ArrayDict(specs), self.storage)
        trees = tree, tree.new_array(), tree.to(self.storage)
        blocks_of_trees = list(blocks)
        assert len(blocks_of_trees) == len(trees)
        for each in trees:
            for number, leaf in enumerate(each.values()):  # none lies in another's place
                leaf[...] = number
            for number, values in enumerate(self.values(each).values()):
                assert_array_equal(values, np.full((3, 2), number))
            each.close()
        assert all(block.is_closed for block in blocks_of_trees)

    def test_closing_one_leaf_leaves_the_others_of_the_block(self) -> None:
        tree = self.tree()
        tree["done"].close()
        tree["observation"][...] = 3
        assert self.read(tree["observation"]).min() == 3

    def test_close_reaches_every_leaf_and_may_be_repeated(self) -> None:
        tree = self.tree()
        tree.close()
        for _, leaf in tree.walk():
            with pytest.raises(ValueError, match="closed"):
                leaf.to_ndarray()
        tree.close()

    def test_allocate_tree_gives_what_the_specs_say(self) -> None:
        specs = ArrayDict(
            {
                "a": self.spec((4, 3), np.uint8, feature_shape=(2,), padding=1, full_size=8),
                "b": {"c": self.spec((4,), np.float64)},
            }
        )
        tree = allocate_tree(specs, self.storage)
        assert leaves(tree.spec) == leaves(specs)
        assert leaves(tree.storage) == {"a": self.storage, "b.c": self.storage}
        assert not any(values.any() for values in self.values(tree).values())

    def test_new_array_reaches_every_leaf(self) -> None:
        tree = self.tree(padding=2)
        new = tree.new_array(batch_shape=(4, 3), padding=1, full_size=8)
        shapes = dict(zip(PATHS, [(4, 3, 4), (4, 3), (4, 3, 2), (4, 3)], strict=True))
        assert leaves(new.shape) == shapes
        assert leaves(new.dtype) == leaves(tree.dtype)
        assert set(leaves(new.padding).values()) == {1}
        assert set(leaves(new.full_size).values()) == {8}
        assert set(leaves(new.storage).values()) == {self.storage}
        assert not any(values.any() for values in self.values(new).values())
        new[...] = 1
        assert self.values(tree)["observation"][0, 0, 0] == 0

    def test_new_array_keeps_features_and_windows(self) -> None:
        tree = ArrayDict({"a": self.array((4, 3), feature_shape=(2,), padding=1, full_size=8)})
        new = tree.new_array(storage="local")
        assert new["a"].spec == tree["a"].spec
        assert leaves(new.storage) == {"a": "local"}
        assert leaves(tree.new_array(batch_shape=(5, 6)).shape) == {"a": (5, 6, 2)}

    def test_a_tree_that_does_not_fit_is_an_error_with_a_table(self) -> None:
        tree = self.tree()
        with pytest.raises(MemoryError, match=f"{self.storage} memory: .* bytes wanted") as caught:
            tree.new_array(batch_shape=(2**40, 2**10))
        spec = tree["observation"].spec.changed(batch_shape=(2**40, 2**10))
        assert spec.nbytes >= 2**50 * 16
        row = f"\n  observation: {spec.extents} float32, {spec.nbytes:,} bytes"
        assert row in str(caught.value)
        assert "\n  action.pinky: " in str(caught.value)

    def test_a_tree_moves_to_memory_of_another_kind_and_back(self) -> None:
        tree = self.tree(padding=2, full_size=2 * T)
        tree.rotate()
        tree[-1] = 1
        for kind in KINDS if self.is_for_gpu else ("local", "shared", self.storage):
            there = tree.to(kind)
            assert set(leaves(there.storage).values()) == {kind}
            back = there.to(self.storage)
            for other in (there, back):
                assert leaves(other.spec) == leaves(tree.spec)
                self.assert_holds(other, tree)
                self.assert_holds(other.apply(whole), tree.apply(whole))

    def test_a_deep_copy_has_memory_of_its_own(self) -> None:
        tree = self.tree(padding=1)
        for other in (copy.deepcopy(tree), *([clone(tree)] if self.sends == "values" else [])):
            self.assert_holds(other, tree)
            assert set(leaves(other.storage).values()) == {self.storage}
            assert set(leaves(other.padding).values()) == {1}
            other[...] = 1
            self.assert_holds(tree, self.tree())
            assert other["action"] is not tree["action"]
            self.assert_holds(copy.deepcopy(tree[2:4, 1]), tree[2:4, 1])

    def test_a_tree_survives_copying_and_conversion(self) -> None:
        def law(forms: Forms) -> None:
            tree = self.tree_of(forms)
            self.assert_holds(copy.deepcopy(tree), tree)
            self.assert_holds(tree.to_ndarray(), tree)
            self.assert_holds(tree.to_torch().to_ndarray(), tree)
            if self.is_on_host:
                self.assert_holds(tree.apply(np.array), tree)
            assert tree._repr_html_().count("<tr>") == 1 + len(leaves(tree))
            if self.sends != "nothing":
                self.assert_holds(clone(tree), tree)
            if self.sends == "values":
                self.assert_holds(clone(tree[1:3, 1]), tree[1:3, 1])

        self.hold(law, TREES)
