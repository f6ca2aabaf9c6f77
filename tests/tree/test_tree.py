"""ArrayDict: one array's manners for a whole tree, whatever its leaves are.

What a tree of Arrays promises in memory of every kind is in parllel.testing's TreeContract.
"""

import copy
import gc
import html
import multiprocessing as mp
import os
import pickle
from collections.abc import MutableMapping
from operator import setitem
from typing import Any

import numpy as np
import pytest
import torch

from parllel import Array, ArrayDict, dict_map
from parllel.arrays import ArraySpec
from parllel.testing.contracts.tree_case import leaves, numbered
from parllel.testing.contracts.tree_values import new_values
from parllel.tree import allocate_tree

T, B = 10, 5
SCALAR = (
    42 * T * B
)  # the value that the notebook writes: the mean over T * B rows is 42 where one row has it


def make_tree(storage: str = "local", **window: Any) -> ArrayDict:
    """Return the tree of the notebook docs/arrays_and_trees.ipynb."""
    return ArrayDict(
        {
            "observation": Array((T, B, 4), np.float32, storage=storage, **window),
            "action": {
                "pinky": Array((T, B), np.int64, storage=storage, **window),
                "the_brain": Array((T, B, 2), np.float32, storage=storage, **window),
            },
            "done": Array((T, B), bool, storage=storage, **window),
        }
    )


def assert_same(tree: ArrayDict, other: ArrayDict) -> None:
    """Check that two trees have the same names, dtypes and values, bit for bit."""
    assert list(leaves(tree)) == list(leaves(other))
    for path, leaf in leaves(tree).items():
        one, two = np.asarray(leaf), np.asarray(leaves(other)[path])
        assert one.dtype == two.dtype, path
        np.testing.assert_array_equal(one, two, err_msg=path)


PATHS = ["observation", "action.pinky", "action.the_brain", "done"]


# The notebook, cell by cell


def test_a_scalar_is_written_into_every_leaf() -> None:
    tree = make_tree()
    tree[0, 1] = SCALAR
    row = tree[0, 1]
    np.testing.assert_array_equal(row["observation"], np.full(4, SCALAR, np.float32))
    assert row["action"]["pinky"].item() == SCALAR
    np.testing.assert_array_equal(row["action"]["the_brain"], np.full(2, SCALAR, np.float32))
    assert row["done"].item() is True
    assert tree["observation"].to_ndarray().sum() == 4 * SCALAR


def test_an_attribute_of_the_tree_is_the_tree_of_the_leaves_attributes() -> None:
    assert leaves(make_tree().dtype) == {
        "observation": np.dtype(np.float32),
        "action.pinky": np.dtype(np.int64),
        "action.the_brain": np.dtype(np.float32),
        "done": np.dtype(bool),
    }


def test_a_method_of_the_tree_calls_every_leafs_method() -> None:
    tree = make_tree()
    tree[0, 1] = SCALAR
    mean = tree.to_ndarray().mean(axis=(0, 1))
    np.testing.assert_array_equal(mean["observation"], np.full(4, 42, np.float32))
    assert mean["action"]["pinky"] == 42
    np.testing.assert_array_equal(mean["action"]["the_brain"], [42, 42])
    assert mean["done"] == 1 / (T * B)


def test_arrays_ndarrays_and_tensors_share_the_same_storage() -> None:
    tree = make_tree()
    tree[0, 1] = SCALAR
    tensor_tree = tree[0].to_ndarray().apply(torch.from_numpy)
    tensor_tree[1] = 0
    tensor_tree[2] = SCALAR
    assert not tree[0, 1].to_ndarray().any()["observation"]
    row = tree[0, 2]
    np.testing.assert_array_equal(row["observation"], np.full(4, SCALAR, np.float32))
    assert row["action"]["pinky"].item() == SCALAR
    assert row["done"].item() is True


def test_a_branch_is_used_like_one_array() -> None:
    rng = np.random.default_rng(0)
    tree = make_tree()
    pinky, the_brain = rng.integers(0, 9, (T, B)), rng.random((T, B, 2), np.float32)
    tree["action"][...] = {"pinky": pinky, "the_brain": the_brain}
    action = tree.to_ndarray()["action"]
    assert leaves(action.mean()) == {"pinky": pinky.mean(), "the_brain": the_brain.mean()}
    assert leaves(action.std()) == {"pinky": pinky.std(), "the_brain": the_brain.std()}


# Names


def test_nested_mappings_become_array_dicts_and_leaves_are_not_copied() -> None:
    leaf = np.zeros(3)
    tree = ArrayDict({"a": {"b": {"c": leaf}}, "d": leaf})
    assert isinstance(tree["a"]["b"], ArrayDict)
    assert tree["a"]["b"]["c"] is leaf
    assert tree["d"] is leaf
    tree["e"] = {"f": leaf}
    assert isinstance(tree["e"], ArrayDict)


def test_it_is_a_mutable_mapping() -> None:
    one, two, three = np.zeros(1), np.zeros(2), np.zeros(3)
    tree = ArrayDict({"one": one, "two": two})
    assert isinstance(tree, MutableMapping)
    assert (len(tree), list(tree), list(tree.keys())) == (2, ["one", "two"], ["one", "two"])
    assert all(value is leaf for value, leaf in zip(tree.values(), (one, two), strict=True))
    assert [name for name, _ in tree.items()] == ["one", "two"]
    assert "one" in tree
    assert "three" not in tree
    assert tree.get("one") is one
    assert tree.get("three") is None
    assert tree.get("three", three) is three
    tree.update({"three": three})
    tree.update(four=two)
    assert tree.pop("three") is three
    assert tree.pop("three", None) is None
    assert tree.setdefault("five", three) is three
    del tree["one"]
    assert list(tree) == ["two", "four", "five"]
    assert {**tree}.keys() == {"two", "four", "five"}


def test_walk_gives_paths_and_leaves_in_order() -> None:
    tree = make_tree()
    assert [path for path, _ in leaves(tree).items()] == PATHS
    assert leaves(tree)["action.pinky"] is tree["action"]["pinky"]


@pytest.mark.parametrize("name", [0, None, ("a", "b"), b"a"])
def test_a_name_that_is_no_string_is_refused(name: Any) -> None:
    with pytest.raises(TypeError, match="expected a string"):
        ArrayDict({name: np.zeros(2)})
    with pytest.raises(TypeError, match="expected a string"):
        ArrayDict({"a": {"b": {name: np.zeros(2)}}})
    with pytest.raises(TypeError, match="expected a string"):
        ArrayDict()["a"] = {name: np.zeros(2)}


def test_a_missing_branch_raises_key_error_with_the_names_there_are() -> None:
    with pytest.raises(KeyError, match=r"camera: no such branch.*'pinky', 'the_brain'"):
        make_tree()["action"]["camera"]
    with pytest.raises(KeyError):
        del make_tree()["camera"]
    with pytest.raises(KeyError):
        make_tree().pop("camera")


# Assignment


def test_a_tree_is_written_into_an_empty_branch() -> None:
    tree = ArrayDict({"a": Array((3,), np.float32), "env_info": {}})
    tree[1] = {"a": 5, "env_info": {}}
    tree[2] = 6
    np.testing.assert_array_equal(tree["a"], [0, 5, 6])


# All leaves at once


def test_apply_calls_with_arguments_and_returns_a_new_tree() -> None:
    tree = ArrayDict({"a": np.arange(3.0), "b": {"c": np.ones(2)}, "empty": {}})
    result = tree.apply(lambda leaf, plus, *, times: (leaf + plus) * times, 1, times=2)
    np.testing.assert_array_equal(result["a"], [2, 4, 6])
    np.testing.assert_array_equal(result["b"]["c"], [4, 4])
    assert list(result) == ["a", "b", "empty"]
    np.testing.assert_array_equal(tree["a"], [0, 1, 2])


def test_map_is_apply() -> None:
    tree = make_tree()
    assert leaves(tree.map(np.ndim)) == leaves(tree.apply(np.ndim))


def test_dict_map_takes_a_leaf_a_dict_and_a_tree() -> None:
    def scale(leaf: Any, by: float, *, plus: float = 0) -> Any:
        return leaf * by + plus

    assert dict_map(scale, 2, 3, plus=1) == 7
    nested = {"a": 2, "b": {"c": 3}}
    for tree in (nested, ArrayDict(nested)):
        result = dict_map(scale, tree, 10, plus=1)
        assert isinstance(result, ArrayDict)
        assert leaves(result) == {"a": 21, "b.c": 31}
    assert nested == {"a": 2, "b": {"c": 3}}
    assert leaves(dict_map(scale, {}, 10)) == {}
    sequence = [1, 2]
    assert dict_map(lambda leaf: leaf is sequence, sequence) is True


def test_dict_map_makes_arrays_of_an_example() -> None:
    example = {"image": np.zeros((2, 3), np.uint8), "speed": np.float64(1)}
    tree = dict_map(Array.from_numpy, example, batch_shape=(T, B), padding=1)
    assert leaves(tree.shape) == {"image": (T, B, 2, 3), "speed": (T, B)}
    assert leaves(tree.padding) == {"image": 1, "speed": 1}


def test_an_empty_tree_answers_every_question_with_an_empty_tree() -> None:
    tree = ArrayDict()
    for result in (
        *(tree[0, 1], tree[...], tree.dtype, tree.mean(axis=0), tree.to_ndarray()),
        *(tree.to_torch(), tree.apply(np.sum), tree.new_array(padding=1), allocate_tree(tree)),
    ):
        assert isinstance(result, ArrayDict)
        assert len(result) == 0
    tree[0, 1] = 3
    tree[0, 1] = {}
    tree.rotate()
    tree.reset()
    tree.close()


def test_an_empty_branch_stays_where_it_is() -> None:
    tree = ArrayDict({"a": Array((3, 2), np.float32), "env_info": {}})
    for result in (
        *(tree[0], tree.dtype, tree.to_ndarray().sum(), tree.to_torch(), tree.new_array()),
        tree.apply(np.sum),
    ):
        assert list(result) == ["a", "env_info"]
        assert isinstance(result["env_info"], ArrayDict)
        assert len(result["env_info"]) == 0


def test_leaves_attributes_with_an_underscore_are_not_the_trees() -> None:
    tree = make_tree()
    for name in ("__dlpack__", "__array_interface__", "_buffer"):
        assert not hasattr(tree, name)
        assert not hasattr(ArrayDict(), name)


# Leaves of every library


def test_ndarrays_tensors_and_arrays_may_be_mixed() -> None:
    tree = ArrayDict(
        {
            "array": Array((3, 2), np.float32),
            "numpy": np.zeros((3, 2), np.float32),
            "torch": torch.zeros(3, 2),
        }
    )
    tree[1] = 5
    assert leaves(tree.to_ndarray().sum()) == {"array": 10, "numpy": 10, "torch": 10}
    assert leaves(tree[1].shape) == {"array": (2,), "numpy": (2,), "torch": (2,)}


def test_to_ndarray_shares_memory() -> None:
    tree = ArrayDict({"a": Array((3,), np.float32), "n": np.zeros(3), "t": torch.zeros(3)})
    out = tree.to_ndarray()
    assert all(type(leaf) is np.ndarray for _, leaf in out.walk())
    out[1] = 8
    assert tree["a"][1].item() == tree["n"][1] == tree["t"][1].item() == 8


def test_to_torch_shares_memory() -> None:
    tree = ArrayDict({"a": Array((3,), np.float32), "n": np.zeros(3), "t": torch.zeros(3)})
    out = tree.to_torch()
    assert all(type(leaf) is torch.Tensor for _, leaf in out.walk())
    assert out["t"] is tree["t"]
    out[1] = 8
    assert tree["a"][1].item() == tree["n"][1] == tree["t"][1].item() == 8


def test_a_tree_of_tensors_moves_and_casts() -> None:
    tree = make_tree().to_torch().to(device="cpu", dtype=torch.float64)
    assert set(leaves(tree.dtype).values()) == {torch.float64}


# Arrays as leaves


def n_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_tree_in_shared_memory_needs_one_descriptor() -> None:
    specs = {f"leaf_{number}": ArraySpec.of((3, 2), np.float32) for number in range(50)}
    gc.collect()  # what earlier tests left
    before = n_descriptors()
    one = Array((3, 2), np.float32, storage="shared")
    for_one_array = n_descriptors() - before
    tree = allocate_tree(ArrayDict(specs), "shared")
    new = tree.new_array()
    assert n_descriptors() - before == 3 * for_one_array
    for array in (one, tree, new):
        array.close()
    assert n_descriptors() == before


def test_new_array_needs_one_storage() -> None:
    tree = ArrayDict({"a": Array((2,), np.int32), "b": Array((2,), np.int32, storage="shared")})
    with pytest.raises(TypeError, match=r"\['local', 'shared'\]; give one storage="):
        tree.new_array()
    assert leaves(tree.new_array(storage="local").storage) == {"a": "local", "b": "local"}


def test_new_array_names_a_leaf_that_is_no_array() -> None:
    with pytest.raises(TypeError, match=r"^a\.b: new_array: got a ndarray, expected an Array"):
        ArrayDict({"a": {"b": np.zeros(2)}}).new_array()
    with pytest.raises(TypeError, match="pading"):
        make_tree().new_array(pading=1)


# Errors say which leaf it was


def test_index_error_names_the_leaf() -> None:
    tree = ArrayDict({"long": np.zeros(9), "b": {"short": np.zeros(2)}})
    with pytest.raises(IndexError, match=r"^b\.short: index 5 "):
        tree[5]
    with pytest.raises(IndexError, match=r"^b\.short: index 5 "):
        tree[5] = 1


def test_type_error_names_the_leaf() -> None:
    tree = ArrayDict({"a": {"b": np.zeros(2), "c": 3}})
    with pytest.raises(TypeError, match=r"^a\.c: 'int' object is not subscriptable"):
        tree[0]
    with pytest.raises(TypeError, match=r"^a\.b: 'numpy\.ndarray' object is not callable"):
        tree()


def test_attribute_error_names_the_leaf() -> None:
    tree = ArrayDict({"a": torch.zeros(2), "b": {"c": np.zeros(2)}})
    with pytest.raises(AttributeError, match=r"^b\.c: 'numpy.ndarray' .* no attribute 'data_ptr'"):
        tree.data_ptr()
    assert hasattr(tree, "shape")
    assert not hasattr(tree, "data_ptr")


def test_an_error_of_its_own_type_stays_itself_and_gets_the_path_as_a_note() -> None:
    class BadLeafError(Exception):
        pass

    original = BadLeafError("one", "two")

    def fail_on_integers(leaf: Any) -> None:
        if leaf.dtype == np.int64:
            raise original

    with pytest.raises(BadLeafError) as caught:
        make_tree().apply(fail_on_integers)
    assert caught.value is original
    assert caught.value.args == ("one", "two")
    assert "at the leaf action.pinky" in caught.value.__notes__


def test_numpys_own_errors_get_the_path_as_a_note() -> None:
    with pytest.raises(np.exceptions.AxisError) as caught:
        make_tree().to_ndarray()["action"].mean(axis=2)
    assert "at the leaf pinky" in caught.value.__notes__


@pytest.mark.parametrize(
    "kind",
    [AttributeError, IndexError, KeyError, MemoryError, RuntimeError, TypeError, ValueError],
)
def test_an_error_keeps_its_type_message_and_cause(kind: type[Exception]) -> None:
    original = kind("what went wrong")

    def fail(leaf: Any) -> None:
        raise original

    with pytest.raises(kind, match=r"a\.b\.c: what went wrong") as caught:
        ArrayDict({"a": {"b": {"c": 1}}}).apply(fail)
    assert caught.value.__cause__ is original
    with pytest.raises(kind, match=r"a: "):  # without a message there is the type's name
        ArrayDict({"a": 1}).apply(lambda leaf: (_ for _ in ()).throw(kind()))


# Sending, copying, showing


def test_a_spawned_child_writes_the_parents_tree() -> None:
    tree = make_tree().new_array(storage="shared")
    values = new_values(B)
    child = mp.get_context("spawn").Process(target=setitem, args=(tree[3:5], 1, values))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert_same(tree[4], ArrayDict(values))
    assert not any(leaf.any() for _, leaf in tree[:4].to_ndarray().walk())
    tree.close()


def test_a_pickled_tree_of_local_leaves_is_a_copy() -> None:
    tree = numbered(make_tree(padding=1))
    tree["torch"] = torch.arange(3)
    other = pickle.loads(pickle.dumps(tree))
    assert_same(other, tree)
    assert leaves(other["action"].padding) == {"pinky": 1, "the_brain": 1}
    other["observation"][...] = -1
    assert tree["observation"].to_ndarray().min() == 0


def test_a_copy_has_the_same_leaves_and_names_of_its_own() -> None:
    tree = make_tree()
    for other in (copy.copy(tree), ArrayDict(tree)):
        assert all(leaf is leaves(tree)[path] for path, leaf in leaves(other).items())
        other["new"] = np.zeros(2)
        del other["done"]
        assert list(tree) == ["observation", "action", "done"]


def test_printing_shows_names_and_leaves_indented() -> None:
    tree = ArrayDict({"a": np.array([1, 2]), "b": {"c": np.zeros((2, 1))}, "empty": {}})
    assert repr(tree) == (
        "ArrayDict({\n"
        "    'a': array([1, 2]),\n"
        "    'b': ArrayDict({\n"
        "        'c': array([[0.],\n"
        "               [0.]]),\n"
        "    }),\n"
        "    'empty': ArrayDict({}),\n"
        "})"
    )
    assert repr(ArrayDict()) == "ArrayDict({})"
    for path in ("observation", "pinky", "the_brain", "done"):
        assert f"'{path}': " in repr(make_tree())


def rows_of_html(tree: ArrayDict) -> list[list[str]]:
    """Return the cells of the notebook's table, the title row first."""
    table = tree._repr_html_()
    assert table.startswith("<table>")
    assert table.endswith("</table>")
    rows = table.replace("<td>", "<th>").replace("</td>", "</th>").split("<tr>")[1:]
    return [
        [html.unescape(cell.split("</th>")[0]) for cell in row.split("<th>")[1:]] for row in rows
    ]


def test_a_notebook_shows_path_dtype_shape_storage_and_bytes() -> None:
    tree = ArrayDict(
        {
            "observation": {"camera": Array((100, 8), np.uint8, feature_shape=(4, 4), padding=1)},
            "done": Array((100, 8), bool, storage="shared"),
            "numpy": np.zeros((2, 3)),
            "torch": torch.zeros(3),
            "empty": {},
        }
    )
    assert rows_of_html(tree) == [
        ["path", "dtype", "shape", "storage", "bytes"],
        ["observation.camera", "uint8", "(100, 8, 4, 4)", "local", f"{102 * 8 * 16:,}"],
        ["done", "bool", "(100, 8)", "shared", "800"],
        ["numpy", "float64", "(2, 3)", "local", "48"],
        ["torch", "torch.float32", "(3,)", "cpu", "12"],
    ]
    assert rows_of_html(ArrayDict())[1:] == []


def test_a_notebook_shows_leaves_that_are_no_arrays() -> None:
    for tree in (make_tree().dtype, make_tree().shape, make_tree().item):
        assert [row[0] for row in rows_of_html(tree)[1:]] == PATHS


def test_names_in_a_notebook_are_escaped() -> None:
    tree = ArrayDict({'<b>&"': np.zeros(1)})
    assert "<b>" not in tree._repr_html_()
    assert rows_of_html(tree)[1][0] == '<b>&"'


@pytest.mark.parametrize("make", ["new_array", "to"])
def test_a_tree_that_does_not_fit_is_an_error_with_a_table(
    make: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = ArrayDict(
        {
            "image": Array((4, 2), np.uint8, feature_shape=(84, 84), padding=1, full_size=8),
            "deep": {"reward": Array((4, 2), np.float32)},
        }
    )
    monkeypatch.setattr("parllel.storages.host_memory.available_nbytes", lambda: 1000)
    with pytest.raises(MemoryError) as caught:
        tree.new_array(storage="shared") if make == "new_array" else tree.to("shared")
    # (8 + 2) * 2 * 84 * 84 bytes, and 4 * 2 * 4, each rounded up to 256
    for part in (
        "141,568 bytes wanted, 1,000 free",
        "\n  image: (10, 2, 84, 84) uint8, 141,120 bytes",
        "\n  deep.reward: (4, 2) float32, 32 bytes",
    ):
        assert part in str(caught.value)


def test_a_tree_is_made_of_what_a_dict_is_made_of() -> None:
    assert list(ArrayDict([("a", np.zeros(1)), ("b", {"c": np.ones(1)})]).walk()) == [
        (("a",), np.zeros(1)),
        (("b", "c"), np.ones(1)),
    ]


def test_a_tree_is_not_none_and_numpy_never_takes_it_for_an_unequal_array() -> None:
    tree = ArrayDict({"a": np.arange(3)})
    is_none, is_other = tree == None, tree != None  # noqa: E711  # as a sentinel asks it
    assert (is_none, is_other) == (False, True)
    assert None not in [tree]
    for function in (np.array_equal, np.array_equiv, np.allclose):
        with pytest.raises(TypeError, match="to_ndarray"):
            function(tree, tree)


def test_a_tree_with_other_branches_shares_the_rest() -> None:
    array, nested = Array((2, 1), np.float32), ArrayDict({"b": Array((2, 1), np.float32)})
    tree = ArrayDict({"a": array, "nested": nested})
    other = Array((2, 1), np.int64)
    changed = tree.with_branches({"a": other, "new": array})
    assert list(changed) == ["a", "nested", "new"]
    assert changed["a"] is other
    assert changed["nested"] is nested
    assert changed["new"] is array
    assert list(tree) == ["a", "nested"]
    assert tree["a"] is array
    changed[0] = {"a": 3, "nested": {"b": 4}, "new": 5}
    assert array[0].item() == 5
    made = tree.with_branches({"plain": {"c": np.zeros(2)}})
    assert isinstance(made["plain"], ArrayDict)
    rows = tree[0].with_branches({"more": np.zeros(1)})
    rows["more"] = np.ones(1)  # a tree of its own, and no rows of another one
    assert "more" not in tree
    with pytest.raises(TypeError, match="got 3 as a name"):
        tree.with_branches({3: array})
