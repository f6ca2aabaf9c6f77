"""JaggedArray against lists of arrays; what slots hold behind their elements is poison."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from parllel import Array, Jagged, JaggedArray, cuda
from parllel.testing.simulated_cuda.fixture import cuda_simulation

__all__ = ["cuda_simulation"]  # a fixture

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
        assert_array_equal(np.asarray(found), expected[0], strict=True)
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
@settings(max_examples=10)
@given(*sequences)
def test_it_is_a_list_in_memory_of_several_processes(
    storage: str, padding: int, n_windows: int, taken: list[Any], seed: int
) -> None:
    follow(storage, padding, n_windows, taken, seed)
