"""ArrayWindowContract: rotation, padding, and views that stay where they were taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from parllel.arrays import Array
from parllel.testing.contracts.array_case import ArrayCase, values_of, whole

VIEWS: list[Callable[[Array], Array]] = [
    lambda array: array[...],
    lambda array: array[2],
    lambda array: array[1, 2],
    lambda array: array[-1],
    lambda array: array[5],
    lambda array: array[1:4:2],
    lambda array: array[::-1],
    lambda array: array[:, 1:3][2:],
    lambda array: array.full,
    lambda array: array.full[3:8],
    lambda array: array.next,
    lambda array: array.previous,
    lambda array: array[2].next,
    lambda array: array[[0, 2], [1, 3]],
    lambda array: array[array.to_ndarray() % 3 == 0],
    lambda array: array[[0, 2]].previous,
]
each_view = pytest.mark.parametrize("view_of", VIEWS)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, int, int, list[set[int]]]:
    """Draw T, padding, full_size, and for each batch the rows that are written."""
    T = draw(st.sampled_from([1, 2, 3, 4]))
    padding = draw(st.sampled_from(range(T + 1)))
    full_size = T * draw(st.sampled_from([1, 2, 3]))
    rows = st.sets(st.sampled_from(range(T + padding)), min_size=0)
    all_rows = st.just(set(range(T)))
    written = st.one_of(all_rows, rows, rows.map(set(range(T)).union))
    return T, padding, full_size, draw(st.lists(written, max_size=9))


def some_index(rng: np.random.Generator, n_dims: int) -> Any:
    """Return an index of any kind, inside a window of 6 x 4 x 3 with a padding of 2.

    Of two dimensions, the window is 6 x 4.
    """
    choices: list[Any] = [
        int(rng.integers(-2, 8)),
        (int(rng.integers(-2, 8)), int(rng.integers(4))),
        slice(-1, 5, int(rng.integers(1, 4))),
        (slice(None, None, -1), slice(3, 0, -2)),
        (..., int(rng.integers(3))),
        (rng.integers(-2, 8, 5), rng.permutation(4)[[0, 1, 2, 3, 0]]),
        (slice(1, 4), rng.permutation(4)[:2]),
        (rng.permutation(6)[:2], slice(None), rng.integers(0, 3, 2)),
        rng.random((6, 4)) < 0.4,
        ...,
    ]
    index = choices[rng.integers(len(choices))]
    return index[:n_dims] if isinstance(index, tuple) else index


def some_values(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Return values that a view of a shape takes, of any kind."""
    values = rng.random(shape).astype(np.float32)
    choices = [values, torch.from_numpy(values), values.tolist(), float(rng.random())]
    return choices[rng.integers(len(choices))]


class ArrayWindowContract(ArrayCase):
    """Windows rotate, padding carries rows over, and views stay where they were taken."""

    # The first examples of docs/arrays_and_trees.ipynb, step by step

    def test_cell_padding(self) -> None:
        array = self.array((5, 4), np.float32, padding=1)
        array[:] = np.arange(4)
        array[5] = [4, 5, 6, 7]
        self.assert_shows(array, np.tile(np.arange(4), (5, 1)))  # padding is not visible
        assert "7." not in str(array)
        self.assert_shows(array[5], [4, 5, 6, 7])
        self.assert_shows(array[array.last + 1], [4, 5, 6, 7])
        assert array.last + 1 == 5

        array[...] = 0
        array.rotate()
        self.assert_shows(array[0], [4, 5, 6, 7])
        self.assert_shows(array[1:], np.zeros((4, 4)))

        self.assert_shows(array[-1], [0, 0, 0, 0])
        array[4] = [42, 7, 42, 7]
        array.rotate()
        self.assert_shows(array[-1], [42, 7, 42, 7])

    def test_cell_full_size(self) -> None:
        array = self.array((5, 4), np.float32, full_size=10)
        array[...] = 7
        array.rotate()
        self.assert_shows(array, np.zeros((5, 4)))
        array[...] = 42
        array.rotate()
        self.assert_shows(array, np.full((5, 4), 7))
        array.rotate()
        self.assert_shows(array, np.full((5, 4), 42))

    def test_cell_next_and_previous(self) -> None:
        array = self.array((5, 4), np.float32, padding=1)
        array[...] = np.arange(np.prod(array.shape)).reshape(array.shape)
        array[-1] = np.arange(-4, 0)
        self.assert_shows(array, np.arange(20).reshape(5, 4))
        self.assert_shows(array.previous, np.arange(-4, 16).reshape(5, 4))
        self.assert_shows(array.next, [*np.arange(4, 20).reshape(4, 4), np.zeros(4)])
        self.assert_shows(array[2], [8, 9, 10, 11])
        self.assert_shows(array[2].previous, [4, 5, 6, 7])
        self.assert_shows(array[2].next, [12, 13, 14, 15])

    # Rotation

    @pytest.mark.parametrize("padding", [0, 1, 3])
    @pytest.mark.parametrize("n_windows", [1, 2, 3])
    def test_rotate_moves_no_byte_unless_it_wraps(self, n_windows: int, padding: int) -> None:
        T = 3
        array = self.array((T, 2), np.int32, padding=padding, full_size=n_windows * T)
        base = whole(array)
        base[...] = np.arange(base.size).reshape(base.shape)
        for n_rotations in range(1, 2 * n_windows + 1):
            expected = self.read(base).copy()
            array.rotate()
            if n_rotations % n_windows == 0:
                expected[: 2 * padding] = expected[n_windows * T :].copy()
            self.assert_shows(base, expected)
            first = padding + T * (n_rotations % n_windows)
            self.assert_shows(array, expected[first : first + T])

    def test_rows_written_around_the_window_are_found_after_it_moved(self) -> None:
        def law(case: tuple[int, int, int, list[set[int]]]) -> None:
            """Values written for a time are read at that time, within the window's padding.

            The same holds for the rows that were written ahead of the window, into the next batch.
            """
            T, padding, full_size, batches = case
            array = self.array((T,), np.int64, padding=padding, full_size=full_size)
            written = dict.fromkeys(range(-padding, 0), 0)  # by time; zero before the first batch
            value = 0
            for number, rows in enumerate(batches):
                for row in sorted(rows):
                    value += 1
                    array[row] = written[number * T + row] = value
                array.rotate()
                now = (number + 1) * T
                around = range(now - padding, now + padding)
                shown = self.read(array[-padding:padding])
                for time, element in zip(around, shown, strict=True):
                    assert element == written.get(time, element)

        self.hold(law, batches())

    def test_padding_before_the_window_is_the_end_of_the_batch_before(self) -> None:
        def law(T: int, n_windows: int, n_rotations: int, data: st.DataObject) -> None:
            padding = data.draw(st.integers(0, T))
            array = self.array((T,), np.int64, padding=padding, full_size=n_windows * T)
            for number in range(n_rotations):
                array[...] = 1 + number * T + np.arange(T)
                array.rotate()
            last = n_rotations * T
            expected = np.maximum(np.arange(last - padding, last) + 1, 0)
            self.assert_shows(array[-padding:0], expected if n_rotations else np.zeros(padding))

        self.hold(law, st.integers(1, 4), st.integers(1, 3), st.integers(0, 9), st.data())

    def test_a_padding_as_large_as_the_batch_carries_the_whole_batch_over(self) -> None:
        array = self.array((3,), np.int32, padding=3)
        array[-3:6] = np.arange(1, 10)
        array.rotate()
        self.assert_shows(array[-3:6], [4, 5, 6, 7, 8, 9, 7, 8, 9])

    @pytest.mark.parametrize("n_rotations", range(4))
    @pytest.mark.parametrize("padding", [0, 1])
    def test_after_reset_the_next_rotate_lands_at_the_beginning(
        self, padding: int, n_rotations: int
    ) -> None:
        array = self.array((2,), np.int32, padding=padding, full_size=6)
        array.full[...] = np.arange(6)
        for _ in range(n_rotations):
            array.rotate()
        before = self.read(whole(array)).copy()
        array.reset()
        self.assert_shows(whole(array), before)  # no byte moves
        self.assert_shows(array, [4, 5])
        array.rotate()
        array.full[...] = np.arange(6)
        self.assert_shows(array, [0, 1])
        self.assert_shows(array.full[0], array[0])

    @pytest.mark.parametrize("full_size", [6, 18])
    @pytest.mark.parametrize("seed", range(2))
    def test_it_goes_through_time_as_an_array_in_local_memory_does(
        self, seed: int, full_size: int
    ) -> None:
        rng = np.random.default_rng(seed)
        features = (3,) if self.indexes_features else ()
        options: dict[str, Any] = {"feature_shape": features, "padding": 2, "full_size": full_size}
        array, local = self.array((6, 4), **options), Array((6, 4), np.float32, **options)
        for _ in range(30):
            index = some_index(rng, local.ndim)
            array[index] = local[index] = some_values(rng, local[index].shape)
            if rng.random() < 0.3:
                array.rotate()
                local.rotate()
            index = some_index(rng, local.ndim)
            self.assert_shows(array[index], local[index])
        self.assert_shows(whole(array), whole(local))
        self.assert_shows(array[1:4].next, local[1:4].next)
        self.assert_shows(array.previous, local.previous)
        assert_array_equal(values_of(array.to_torch()), local)
        array.close()

    # Views

    @each_view
    @pytest.mark.parametrize("is_looked_at", [False, True])
    def test_view_stays_put_after_rotate(
        self, is_looked_at: bool, view_of: Callable[[Array], Array]
    ) -> None:
        array, other = (self.counted(padding=1, full_size=10) for _ in range(2))
        view, same = view_of(array), view_of(other)
        if is_looked_at:
            assert view.to_ndarray().shape == view.shape
        array.rotate()
        self.assert_shows(view, same)
        assert view.shape == same.shape
        view[...] = -1  # a write goes to the old place too
        same[...] = -1
        array.reset()
        array.rotate()
        other.reset()
        other.rotate()
        self.assert_shows(whole(array), whole(other))

    @each_view
    def test_taking_a_view_does_not_disturb_the_parent(
        self, view_of: Callable[[Array], Array]
    ) -> None:
        array, other = (self.counted(padding=1, full_size=10) for _ in range(2))
        for _ in range(3):
            view = view_of(array)
            assert view.to_ndarray() is not None
            assert repr(view)
            assert (array.shape, array.full_size, array.padding) == ((5, 4), 10, 1)
            self.assert_shows(array, other)
            self.assert_shows(whole(array), whole(other))
            array.rotate()
            other.rotate()

    def test_full_is_the_ring_without_the_padding(self) -> None:
        array = self.array((2, 3), np.int32, padding=2, full_size=6)
        base = whole(array)
        base[...] = np.arange(30).reshape(10, 3)
        for _ in range(4):
            assert array.full.shape == (6, 3)
            self.assert_shows(array.full, base[2:8])
            array.rotate()

    # Next and previous

    def test_next_and_previous_reach_into_the_padding(self) -> None:
        array = self.counted(padding=2)
        array[5:7] = [[20, 21, 22, 23], [24, 25, 26, 27]]
        self.assert_shows(array.next.next, np.arange(8, 28).reshape(5, 4))
        self.assert_shows(array[4].next, [20, 21, 22, 23])
        self.assert_shows(array[[4, 0], [1, 0]].next, [21, 4])
        self.assert_shows(array[::-1].next[0], [20, 21, 22, 23])
        self.assert_shows(array[np.eye(5, 4, dtype=bool)].next, [4, 9, 14, 19])
        assert array[3, 2].next.previous.item() == array[3, 2].item()

    def test_next_is_written_in_place(self) -> None:
        array = self.counted(padding=1)
        array[1:3].next[...] = -1
        array[[4, 0], [3, 2]].previous[...] = -2
        self.assert_shows(array[2:4], [[-1] * 4, [-1, -1, -1, -2]])
        assert array[-1, 2].item() == -2
