"""Many rows of whole trees in host memory, read and written all leaves at once."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from parllel import Array, ArrayDict, FrameArray
from parllel.ops.row_copy import RowCopy
from parllel.testing.contracts.tree_case import leaves
from parllel.tree import gathers

T, B, N = 600, 8, 5000


def make_tree(storage: str = "local") -> ArrayDict:
    tree = ArrayDict(
        {
            "state": Array((T, B), np.float32, feature_shape=(3,), padding=2, storage=storage),
            "deep": {
                "flag": Array((T, B), bool, padding=1, storage=storage),
                "ring": Array((T, B), np.int64, full_size=2 * T, padding=1, storage=storage),
            },
        }
    )
    rng = np.random.default_rng(0)
    for _, leaf in tree.walk():
        leaf[-1 : T + 1] = rng.integers(0, 2**20, (T + 2, *leaf.shape[1:]))
    tree.rotate()
    for _, leaf in tree.walk():
        leaf[...] = rng.integers(0, 2**20, leaf.shape)
    return tree


def some_rows(seed: int = 1) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(-1, T + 1, N), rng.integers(0, B, N)


def leaf_by_leaf(tree: ArrayDict, index: Any) -> dict[str, Any]:
    return {path: leaf[index].to_ndarray() for path, leaf in leaves(tree).items()}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of rows that were copied all leaves at once."""
    seen: list[int] = []
    run = RowCopy.run

    def count(copy: RowCopy, destination_index: Any, source_index: Any) -> None:
        seen.append(len(source_index))
        run(copy, destination_index, source_index)

    monkeypatch.setattr(RowCopy, "run", count)
    return seen


@pytest.mark.parametrize("storage", ["local", "shared"])
def test_many_rows_are_gathered_at_once(storage: str, calls: list[int]) -> None:
    tree, index = make_tree(storage), some_rows()
    expected = leaf_by_leaf(tree, index)
    for gathered in (tree[index].to_ndarray(), tree[index].to_torch().apply(np.asarray)):
        for path, leaf in leaves(gathered).items():
            assert_array_equal(leaf, expected[path], err_msg=path)
    assert calls == [N, N]
    assert not any(leaf.flags.writeable for _, leaf in tree[index].to_ndarray().walk())


def test_few_rows_are_gathered_leaf_by_leaf(calls: list[int]) -> None:
    tree, index = make_tree(), (np.array([1, 2]), np.array([0, 3]))
    expected = leaf_by_leaf(tree, index)
    for path, leaf in leaves(tree[index].to_ndarray()).items():
        assert_array_equal(leaf, expected[path])
    assert calls == []


@pytest.mark.parametrize("storage", ["local", "shared"])
def test_many_rows_are_scattered_at_once_and_the_later_value_wins(
    storage: str, calls: list[int]
) -> None:
    tree, other, index = make_tree(storage), make_tree(), some_rows()
    rng = np.random.default_rng(2)
    values = (
        tree[index]
        .to_ndarray()
        .apply(lambda leaf: rng.integers(0, 2, leaf.shape).astype(leaf.dtype))
    )
    calls.clear()
    tree[index] = values
    assert calls == [N]
    for path, leaf in leaves(other).items():
        leaf[index] = leaves(values)[path]
        assert_array_equal(leaves(tree)[path].full, leaf.full, err_msg=path)


def test_values_that_overlap_what_is_written_go_leaf_by_leaf(calls: list[int]) -> None:
    tree, other = make_tree(), make_tree()
    index = np.arange(1, T)
    tree, other = tree[:, :], other[:, :]  # views have no window, but the same rows
    tree[np.tile(index, 10)[:N],] = other[np.tile(index - 1, 10)[:N],].to_ndarray()
    calls.clear()
    before = {path: leaf.to_ndarray().copy() for path, leaf in leaves(tree).items()}
    tree[np.arange(1, T)] = tree[: T - 1]
    for path, leaf in leaves(tree).items():
        assert_array_equal(leaf[1:T], before[path][: T - 1], err_msg=path)


def test_leaves_that_overlap_each_other_go_leaf_by_leaf(calls: list[int]) -> None:
    array = Array((T, B), np.float32, padding=1)
    tree = ArrayDict({"now": array[...], "next": array.next})
    index = (np.arange(N) % (T - 1), np.arange(N) % B)
    tree[index] = {"now": np.full(N, 1, np.float32), "next": np.full(N, 2, np.float32)}
    assert calls == []
    assert {1.0, 2.0} >= set(array[:T].to_ndarray().ravel().tolist()) - {0.0}


def test_rows_of_strided_memory_of_another_library_are_written() -> None:
    owner = np.zeros((T, 2 * B), np.float32)
    leaf = Array.from_dlpack(owner[:, ::2])
    index = (np.arange(N) % T, np.arange(N) % B)
    ArrayDict({"leaf": leaf})[index] = {"leaf": np.ones(N, np.float32)}
    assert owner[:, ::2].sum() == len({*zip(*index, strict=True)})
    assert owner[:, 1::2].sum() == 0


@pytest.mark.parametrize(("storage", "n_rows"), [("local", T * B), ("device", 12)])
def test_values_with_gaps_are_scattered_at_once_too(
    cuda_device: torch.device, storage: str, n_rows: int, calls: list[int]
) -> None:
    tree = ArrayDict({"leaf": Array((T, B), np.float32, feature_shape=(3,), storage=storage)})
    index = (np.arange(n_rows) // B, np.arange(n_rows) % B)
    numbers = np.arange(n_rows * 6, dtype=np.float32).reshape(n_rows, 6)
    values = Array.from_numpy(numbers).to(storage)[:, ::2]
    calls.clear()
    tree[index] = {"leaf": values}
    assert calls == [n_rows]
    assert_array_equal(tree[index].to_ndarray()["leaf"], numbers[:, ::2])


def test_stacks_in_host_memory_are_gathered_leaf_by_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows there are: one gather of all leaves is not quicker there."""
    monkeypatch.setattr(gathers, "prepare_gather", None)
    frames = FrameArray((T, B), np.uint8, (2,), stack=3, padding=1)
    rng = np.random.default_rng(0)
    frames.write_frames(..., rng.integers(0, 256, (T, B, 2)), is_first=rng.random((T, B)) < 0.2)
    numbers = np.arange(T * B).reshape(T, B)
    tree = ArrayDict({"number": Array.from_numpy(numbers), "stack": frames})
    index = (np.arange(N) * 7 % T, np.arange(N) % B)
    stacks = frames.to_ndarray()
    for gathered in (tree[index].to_ndarray(), tree[index].to_torch()):
        assert_array_equal(gathered["number"], numbers[index])
        assert_array_equal(gathered["stack"], stacks[index])


def test_rows_that_the_kernel_cannot_read_are_copied_leaf_by_leaf(calls: list[int]) -> None:
    """The elements of a row lie apart: they are no bytes in a row that the kernel could copy."""
    owner = np.arange(T * B * 4, dtype=np.float32).reshape(T, B, 4)
    tree = ArrayDict({"leaf": Array.from_dlpack(owner)[:, :, ::2]})
    index = (np.arange(N) % T, np.arange(N) % B)
    assert_array_equal(tree[index].to_ndarray()["leaf"], owner[index][:, ::2])
    values = np.full((N, 2), -1, np.float32)
    tree[index] = {"leaf": values}
    assert calls == []
    assert (owner[index][:, ::2] == -1).all()
    assert (owner[index][:, 1::2] >= 0).all()
