"""JaggedArray against lists of arrays; what slots hold behind their elements is poison."""

import copy
import logging
import multiprocessing
import pickle
from collections.abc import Callable
from operator import setitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from long_run import all_but_first
from parllel import Array, ArrayDict, Jagged, JaggedArray, cuda
from parllel.arrays import JaggedSpec, spec_from_entry
from parllel.arrays.interop import to_host
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.tree import open_tree, save_tree
from profiles import fewer_examples

T, B, CAPACITY = 3, 2, 4
HOST = ("local", "shared", "inherited")
DEVICE = ("pinned", "managed", "device")

Element = NDArray[np.float32]


def elements(n_elements: int, rng: np.random.Generator) -> list[Element]:
    lengths = rng.integers(0, CAPACITY + 1, n_elements)
    return [rng.random((n, 2), np.float32) for n in lengths]


def poison(array: JaggedArray) -> None:
    """Write NaN to all that no element has."""
    cuda_synchronize(array)
    parts = array.memory_parts
    values, lengths = (
        part if isinstance(part, np.ndarray) else cuda.to_host(part).copy()
        for part in (parts["values"], parts["lengths"])
    )
    values[np.arange(values.shape[lengths.ndim]) >= lengths[..., None]] = np.nan
    if not isinstance(parts["values"], np.ndarray):
        cuda.copy_to_device(values, out_device=parts["values"])
        cuda.synchronize()


def cuda_synchronize(array: JaggedArray) -> None:
    if array.is_for_gpu:
        cuda.synchronize()


def check_elements(found: Any, expected: list[Element]) -> None:
    """Compare an element, or a Jagged of any library, with a list of arrays."""
    if not isinstance(found, Jagged):
        assert_array_equal(np.asarray(to_host(found)), expected[0], strict=True)
        return
    assert len(found.offsets) - 1 == len(expected)
    packed = found.to_ndarray().packed()
    assert packed.offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    assert_array_equal(packed.values, np.concatenate([np.zeros((0, 2), "f4"), *expected]))


class Model:
    """A JaggedArray, and a list of the elements that its memory has to hold.

    A plain Array of the same window tells which of them an index means.
    """

    def __init__(self, storage: str, padding: int, n_windows: int, n_columns: int = B) -> None:
        options: dict[str, Any] = {"padding": padding, "full_size": n_windows * T}
        self.array = JaggedArray(
            (T, n_columns),
            "f4",
            feature_shape=(2,),
            capacity=CAPACITY,
            storage=storage,
            **options,
        )
        self.numbers = Array((T, n_columns), np.int64, **options)
        self.count()
        self.held = [np.zeros((0, 2), np.float32)] * self.numbers.memory_parts["rows"].size
        poison(self.array)

    def count(self) -> None:
        rows = self.numbers.memory_parts["rows"]
        rows[...] = np.arange(rows.size).reshape(rows.shape)

    def write(self, index: Any, rng: np.random.Generator, form: str) -> None:
        numbers = self.numbers[index].to_ndarray()
        written = elements(numbers.size, rng)
        view = self.array[index]
        if form == "one" and written:
            written = written[:1] * numbers.size
            self.array[index] = written[0]
        elif form == "dense" and written:
            written = [rng.random((3, 2), np.float32) for _ in written]
            self.array[index] = np.reshape(written, (*numbers.shape, 3, 2))
        elif form == "jagged" and numbers.ndim and written:
            packed = Jagged.of(written)
            self.array[index] = Jagged(packed.values, packed.offsets, None, numbers.shape)
        else:
            nested: Any = iter(written)
            self.array[index] = _nest(nested, numbers.shape)
        for number, element in zip(numbers.ravel(), written, strict=True):
            self.held[number] = element
        assert view.batch_shape == numbers.shape
        poison(self.array)

    def rotate(self) -> None:
        before = self.array.window_begin
        self.array.rotate()
        self.numbers.rotate()
        self.count()
        if self.array.window_begin < before or self.array.full_size == T:
            padding, n_columns = self.array.padding, self.numbers.shape[1]
            n_moved = 2 * padding * n_columns
            begin = self.array.full_size * n_columns
            self.held[:n_moved] = self.held[begin : begin + n_moved]
        poison(self.array)

    def check(self, index: Any, view_of: Callable[[Array], Array] = lambda view: view) -> None:
        numbers = view_of(self.numbers[index]).to_ndarray()
        view = view_of(self.array[index])
        expected = [self.held[number] for number in numbers.ravel()]
        assert isinstance(view, JaggedArray)
        assert view.batch_shape == numbers.shape
        cuda_synchronize(self.array)
        check_elements(view.to_ndarray(), expected)
        check_elements(view.to_torch(), expected)
        if self.array.is_for_gpu:
            check_elements(view.to_cupy().to_ndarray() if numbers.ndim else view, expected)
        lengths = view.lengths.to_ndarray()
        assert lengths.ravel().tolist() == [len(element) for element in expected]


def _nest(flat: Any, shape: tuple[int, ...]) -> Any:
    return next(flat) if not shape else [_nest(flat, shape[1:]) for _ in range(shape[0])]


INDICES: list[Any] = [
    ...,
    0,
    2,
    (1, 1),
    (slice(None), 1),
    slice(None, None, 2),
    slice(2, None, -1),
    (slice(1, 3), slice(0, 1)),
    ([2, 0], [1, 0]),
    np.array([True, False, True]),
    (np.array([[0], [2]]), np.array([[0, 1]])),
    slice(1, 1),
]
steps = st.one_of(
    st.tuples(
        st.just("write"),
        st.sampled_from(INDICES),
        st.sampled_from(["list", "one", "dense", "jagged"]),
    ),
    st.tuples(st.just("rotate")),
    st.tuples(st.just("reset")),
)


def follow(storage: str, padding: int, n_windows: int, taken: list[Any], seed: int) -> None:
    """Write and rotate, and compare what all views show."""
    model, rng = Model(storage, padding, n_windows), np.random.default_rng(seed)
    for step in taken:
        if step[0] == "write":
            model.write(step[1], rng, step[2])
        elif step[0] == "rotate":
            model.rotate()
        else:
            model.array.reset()
            model.numbers.reset()
        model.check(...)
    for index in INDICES:
        model.check(index)
    if padding:
        model.check(-1)
        model.check(slice(-padding, T + padding))
        model.check(0, lambda view: view.previous)
        model.check((T - 1, 1), lambda view: view.next)
        model.check(([T - 1, 0], [1, 0]), lambda view: view.next)
    full = model.array.full
    expected = [model.held[number] for number in model.numbers.full.to_ndarray().ravel()]
    check_elements(full.to_ndarray(), expected)
    model.array.close()


sequences = (
    st.integers(0, 2),
    st.integers(1, 3),
    st.lists(steps, min_size=1, max_size=8),
    st.integers(0, 9),
)


@given(*sequences)
def test_it_is_a_list_of_arrays(padding: int, n_windows: int, taken: list[Any], seed: int) -> None:
    follow("local", padding, n_windows, taken, seed)


@pytest.mark.parametrize("storage", ["shared", "inherited"])
@fewer_examples(8)
@given(*sequences)
def test_it_is_a_list_in_memory_of_several_processes(
    storage: str, padding: int, n_windows: int, taken: list[Any], seed: int
) -> None:
    follow(storage, padding, n_windows, taken, seed)


@pytest.mark.parametrize("storage", all_but_first(DEVICE[::-1]))
@fewer_examples(8)
@given(*sequences)
def test_it_is_a_list_in_memory_of_a_gpu(
    storage: str, padding: int, n_windows: int, taken: list[Any], seed: int
) -> None:
    schedule = ("lazy", "eager", "random")[seed % 3]
    with simulated_cuda(schedule, seed):
        follow(storage, padding, n_windows, taken, seed)


@pytest.mark.parametrize("storage", ["local", "device"])
def test_elements_are_copied_between_memories(storage: str, cuda_device: torch.device) -> None:
    rng = np.random.default_rng(0)
    written = [elements(B, rng) for _ in range(T)]
    array = JaggedArray(
        (T, B), "f4", feature_shape=(2,), capacity=CAPACITY, storage=storage, padding=1
    )
    array[...] = written
    poison(array)
    flat = [element for row in written for element in row]
    other = array.to("shared" if storage == "local" else "local")
    assert isinstance(other, JaggedArray)
    assert other.spec == array.spec
    check_elements(other.to_ndarray(), flat)
    check_elements(array[1].to("local").to_ndarray(), written[1])
    check_elements(copy.deepcopy(array[1, 0]).to_ndarray(), [written[1][0]])
    wider = JaggedArray((T, B), "f4", feature_shape=(2,), capacity=9, storage=storage)
    wider[...] = array  # the rows of another JaggedArray
    wider[0] = array[2].to_torch()
    wider[1, 1] = array[0, 0].to_torch()
    expected = [*written[2], written[1][0], written[0][0], *written[2]]
    check_elements(wider.to_ndarray(), expected)
    wider[0] = array[1, 0].to_torch()  # one element for both
    check_elements(wider[0].to_ndarray(), [written[1][0]] * 2)
    array[1:3] = array[0:2]  # rows that overlap
    check_elements(array.to_ndarray(), [*written[0], *written[0], *written[1]])
    narrow = JaggedArray((B,), "f4", feature_shape=(2,), capacity=1, storage=storage)
    long = torch.zeros((2, 2), device=array.to_torch().values.device)
    with pytest.raises(ValueError, match="got 2 items, expected up to 1"):
        narrow[...] = long
    for each in (array, other, wider, narrow):
        each.close()


def write_one(array: JaggedArray, value: Any) -> None:
    array[1, 1] = value


@pytest.mark.parametrize("storage", ["local", "device"])
def test_longer_elements_grow_all_slots(storage: str, cuda_device: torch.device) -> None:
    options: dict[str, Any] = {"padding": 1, "storage": storage}
    array = JaggedArray((T, B), "i4", capacity=2, on_overflow="grow", **options)
    array[...] = [[[t, b] for b in range(B)] for t in range(T)]
    before = array[0]
    array[1] = [[7] * 5, [8]]
    assert array.capacity == 8
    assert array.spec.nbytes == JaggedSpec.of((T, B), "i4", (), 1, T, 8, "grow").nbytes
    flat = [element.tolist() for row in array.to_ndarray() for element in row]
    assert flat == [[0, 0], [0, 1], [7] * 5, [8], [2, 0], [2, 1]]
    assert [element.tolist() for element in before.to_ndarray()] == [[0, 0], [0, 1]]
    before[0] = [9]
    assert array[0, 0].to_ndarray().tolist() == [9]
    assert array.place is None
    array.close()


@pytest.mark.parametrize("storage", ["shared", "inherited"])
def test_memory_of_several_processes_does_not_grow(storage: str) -> None:
    with pytest.raises(ValueError, match=f'"grow" in {storage} memory, which other processes'):
        JaggedArray((T, B), "i4", capacity=2, on_overflow="grow", storage=storage)


@pytest.mark.parametrize("storage", ["local", "device"])
def test_items_are_dropped_told_once_and_counted(
    storage: str, cuda_device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    array = JaggedArray((T, B), "i4", capacity=2, on_overflow="drop", storage=storage)
    with caplog.at_level(logging.WARNING):
        array[1] = [[1, 2], [3, 4, 5]]
        array[2] = [[1, 2, 3, 4], []]
    assert [record.message for record in caplog.records] == [
        "element 1 of 2: 1 items were dropped, as it has more than 2; later ones are dropped"
        " without a word, and counted: JaggedArray.dropped"
    ]
    assert array.dropped is not None
    assert array.dropped.to_ndarray().tolist() == [[0, 0], [0, 1], [2, 0]]
    assert array[1, 1].to_ndarray().tolist() == [3, 4]
    array[1] = [[1], [2]]
    assert array.dropped[1].to_ndarray().tolist() == [0, 0]
    array.close()


def test_elements_as_long_as_a_slot_fit() -> None:
    array = JaggedArray((T, B), "i4", capacity=2)
    write_one(array, [1, 2])
    assert array[1, 1].to_ndarray().tolist() == [1, 2]
    with pytest.raises(ValueError, match="element: got 3 items, expected up to 2, the capacity"):
        write_one(array, [1, 2, 3])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2, 3]], r"element: got \(1, 3\), int64, expected \(n, 2\), int32, with n from 0 to"),
        ([1, 2], r"element: got \(2,\), int64, expected \(n, 2\), int32"),
        (3, r"element: got \(\), int64, expected \(n, 2\), int32"),
        ([[np.nan, 1]], "element: got nan of float64, expected a number of int32"),
        ([[0.5, 1]], "element: got 0.5 of float64, expected a number of int32"),
        ([[2**40, 1]], f"element: got {2**40} of int64, expected a number of int32"),
        ([["a", "b"]], "element: got dtype <U1, expected int32"),
        ([[1, 2], [3]], "element: got list: setting an array element with a sequence"),
        (np.array([[None, 1]]), r"element: got \(1, 2\), object, expected"),
        (np.zeros((1, 2)).T, r"element: got \(2, 1\), float64"),
    ],
)
def test_an_element_that_does_not_fit_is_refused(value: Any, message: str) -> None:
    array = JaggedArray((T, B), "i4", feature_shape=(2,), capacity=4)
    array[...] = np.ones((1, 2))
    with pytest.raises(ValueError, match=message):
        write_one(array, value)
    assert array.lengths.to_ndarray().tolist() == [[1] * B] * T
    tree = ArrayDict({"reward": Array((T, B), "f4"), "cloud": array})
    with pytest.raises(ValueError, match=f"cloud: .*{message}"):
        tree[1, 1] = {"reward": 5, "cloud": value}
    assert not tree["reward"].to_ndarray().any()  # nothing was written


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[[1]]], "got a list of 1 at depth 0, expected 3 entries"),
        ([[[1], [2]], [[1], [2], [3]], [[], []]], "got a list of 3 at depth 1, expected 2"),
        ([[[1], [2]], 5, [[1], [2]]], "got int at depth 1, expected 2 entries"),
        (np.zeros((2, 2, 1)), r"writing a value of shape \(2, 2, 1\), expected one element"),
        (Jagged.of([[1]] * 6), r"a Jagged of batch_shape \(6,\), expected \(3, 2\)"),
        ([[[1], [2]], [[3], [1, 2, 3, 4, 5]], [[], []]], r"element \(1, 1\): got 5 items"),
    ],
)
def test_elements_of_another_batch_are_refused(value: Any, message: str) -> None:
    array = JaggedArray((T, B), "i4", capacity=4)
    with pytest.raises(ValueError, match=message):
        array[...] = value
    assert not array.lengths.to_ndarray().any()


def test_items_are_not_indexed() -> None:
    array = JaggedArray((T, B), "i4", capacity=4)
    with pytest.raises(IndexError, match="too many indices: got 3, expected at most 2"):
        array[0, 0, 0]
    with pytest.raises(TypeError, match="no single array"):
        np.asarray(array)
    with pytest.raises(TypeError, match="no single array"):
        np.asarray(array.to_ndarray())
    with pytest.raises(BufferError, match="not exported by DLPack"):
        np.from_dlpack(array)
    assert not hasattr(array, "__cuda_array_interface__")
    assert np.asarray(array[0, 0]).shape == (0,)


def test_a_length_that_is_none_of_a_slot_is_told() -> None:
    array = JaggedArray((T, B), "i4", capacity=4)
    for wrong in (5, -1):
        array.lengths[1, 1] = wrong
        with pytest.raises(ValueError, match=f"a length of {wrong}, expected 0 to 4"):
            array.to_ndarray()
        with pytest.raises(ValueError, match=f"a length of {wrong}, expected 0 to 4"):
            array[1, 1].to_ndarray()


@pytest.mark.parametrize("view", [..., 1, (1, 1), ([0, 2], [1, 0]), slice(None, None, 2)])
def test_pickles_hold_values_or_memory(view: Any) -> None:
    rng = np.random.default_rng(1)
    local, shared = (
        JaggedArray((T, B), "f4", feature_shape=(2,), capacity=CAPACITY, storage=storage)
        for storage in ("local", "shared")
    )
    for array in (local, shared):
        array[...] = [elements(B, rng) for _ in range(T)]
        poison(array)
        found = array[view]
        again = pickle.loads(pickle.dumps(found))
        assert isinstance(again, JaggedArray)
        one = found.to_ndarray()
        expected = [one]
        if isinstance(one, Jagged):
            expected = list(one.flatten(0, len(one.batch_shape) - 1))
        expected = [element.copy() for element in expected]
        check_elements(again.to_ndarray(), expected)
        again[...] = np.full((1, 2), 7)
        same = (array[view].lengths.to_ndarray() == 1).all()
        assert same == (array is shared)


def test_other_processes_write_in_place() -> None:
    array = JaggedArray((T, B), "i4", capacity=4, storage="shared")
    picked = array[np.array([1, 2]), np.array([0, 1])]
    process = multiprocessing.get_context("fork").Process(
        target=setitem, args=(picked, ..., [[1, 2, 3], [4]])
    )
    process.start()
    process.join()
    assert array[1, 0].to_ndarray().tolist() == [1, 2, 3]
    assert array.lengths.to_ndarray().tolist() == [[0, 0], [3, 0], [0, 1]]


@pytest.mark.parametrize("overflow", ["raise", "drop", "grow"])
def test_it_is_saved_and_read_back(overflow: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"padding": 1, "full_size": 2 * T, "on_overflow": overflow}
    array, other = (
        JaggedArray((T, B), "f4", feature_shape=(2,), capacity=CAPACITY, **options)
        for _ in range(2)
    )
    rng = np.random.default_rng(2)
    written = [elements(B, rng) for _ in range(T)]
    array.rotate()
    array[...] = written
    poison(array)
    entry = array.spec.to_entry()
    assert spec_from_entry(entry, np.dtype("f4")) == array.spec
    save_tree(ArrayDict({"cloud": array}), tmp_path, {})
    open_tree(tmp_path).load_into(ArrayDict({"cloud": other}))
    mapped = open_tree(tmp_path).map()["cloud"]
    for found in (other, mapped):
        assert found.spec == array.spec
        check_elements(found.to_ndarray(), [each for row in written for each in row])


def test_memory_is_told_before_it_is_taken() -> None:
    spec = JaggedSpec.of((T, B), "f4", (3,), padding=1, capacity=10)
    with spec.make() as array:
        n_slots = (T + 2) * B
        assert array.allocated_nbytes == n_slots * (10 * 3 * 4 + 8)
        assert spec.nbytes >= array.allocated_nbytes
        described = ArrayDict({"cloud": array}).describe()
        assert described.leaves[0].nbytes >= spec.nbytes
        assert described.leaves[0].shape == str((T, B, 10, 3))
    assert "closed" in repr(array)


def test_trees_index_apply_and_copy_it() -> None:
    array = JaggedArray((T, B), "i4", capacity=4)
    array[...] = [[[t] * b for b in range(B)] for t in range(T)]
    tree = ArrayDict({"cloud": array, "reward": Array((T, B), "f4")})
    assert [each.tolist() for each in tree[2].to_ndarray()["cloud"]] == [[], [2]]
    picked = tree[np.array([2, 1]), np.array([1, 1])].to_torch()["cloud"]
    assert [each.tolist() for each in picked] == [[2], [1]]
    copied = tree.to("shared")
    assert copied["cloud"].storage == "shared"
    assert copied["cloud"][1, 1].to_ndarray().tolist() == [1]
    assert isinstance(tree.new_array()["cloud"], JaggedArray)
    tree[0] = {"cloud": [[5], [6, 7]], "reward": [1, 2]}
    tree[np.array([1])] = tree[np.array([0])].to_ndarray()
    assert array[1, 1].to_ndarray().tolist() == [6, 7]


@pytest.mark.parametrize("storage", ["local", "device"])
@pytest.mark.parametrize("capacity", [2, 3])
def test_what_has_grown_is_loaded_by_one_that_has_not(
    storage: str, capacity: int, tmp_path: Path, cuda_device: torch.device
) -> None:
    """The tree may hold other leaves, whose memory stays where it is."""
    options: Any = {"on_overflow": "grow", "storage": storage, "padding": 1}
    rows = [[np.arange(3 * n * b) for b in range(B)] for n in range(T)]
    saved = JaggedArray((T, B), "i4", capacity=2, **options)
    saved[...] = rows
    saved.rotate()
    saved[...] = rows[::-1]
    assert saved.capacity > capacity
    save_tree(ArrayDict({"clouds": saved, "number": Array((T, B), "i4")}), tmp_path / "tree", {})
    folder = open_tree(tmp_path / "tree")
    again = JaggedArray((T, B), "i4", capacity=capacity, **options)
    again[...] = [[[7]] * B] * T
    tree = ArrayDict({"clouds": again, "number": Array((T, B), "i4")})
    folder.load_into(tree)
    assert again.spec == saved.spec
    found = [each.tolist() for row in again.to_ndarray() for each in row]
    assert found == [each.tolist() for row in rows[::-1] for each in row]
    again[0, 0] = np.arange(50)  # and it grows on
    assert again[0, 0].to_ndarray().tolist() == list(range(50))
    longer = JaggedArray((T, B), "i4", capacity=64, **options)
    with pytest.raises(ValueError, match=r"clouds: saved .* expected .* as the tree has"):
        folder.load_into(ArrayDict({"clouds": longer, "number": Array((T, B), "i4")}))
    still = JaggedArray((T, B), "i4", capacity=2, storage=storage, padding=1)
    with pytest.raises(ValueError, match=r"clouds: saved .* expected .* as the tree has"):
        folder.load_into(ArrayDict({"clouds": still, "number": Array((T, B), "i4")}))
    assert still.capacity == 2
