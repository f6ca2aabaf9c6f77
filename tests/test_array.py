"""Array: windows, life, and what comes in and goes out. Indices have a file of their own."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from parllel import Array

LAW = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def counted(T: int = 5, B: int = 4, **kwargs: Any) -> Array:
    """Return an Array of which each element is its place: 0, 1, 2, ..."""
    array = Array((T, B), np.float32, **kwargs)
    array[...] = np.arange(T * B).reshape(T, B)
    return array


def everything(array: Array) -> Array:
    """Return a view of the whole base buffer of an Array that has not rotated yet."""
    return array[-array.padding : array.full_size + array.padding]


# The description, cell by cell


def test_cell_array() -> None:
    array = Array(batch_shape=(5, 4), dtype=np.float32)
    array[:] = np.arange(4)
    assert_array_equal(array, np.tile(np.arange(4), (5, 1)))
    assert "0., 1., 2., 3." in str(array)
    ndarray = array.to_ndarray()
    assert_array_equal(ndarray.sum(axis=-1), [6, 6, 6, 6, 6])
    ndarray[0, 0] = 9  # this operation does not copy the data
    assert array[0, 0].item() == 9


def test_cell_padding() -> None:
    array = Array(batch_shape=(5, 4), dtype=np.float32, padding=1)
    array[:] = np.arange(4)
    array[5] = [4, 5, 6, 7]
    assert_array_equal(array, np.tile(np.arange(4), (5, 1)))  # padding is not visible
    assert "7." not in str(array)
    assert_array_equal(array[5], [4, 5, 6, 7])
    assert_array_equal(array[array.last + 1], [4, 5, 6, 7])
    assert array.last + 1 == 5

    array[...] = 0
    array.rotate()
    assert_array_equal(array[0], [4, 5, 6, 7])
    assert_array_equal(array[1:], np.zeros((4, 4)))

    assert_array_equal(array[-1], [0, 0, 0, 0])
    array[4] = [42, 7, 42, 7]
    array.rotate()
    assert_array_equal(array[-1], [42, 7, 42, 7])


def test_cell_full_size() -> None:
    array = Array(batch_shape=(5, 4), dtype=np.float32, full_size=10)
    array[...] = 7
    array.rotate()
    assert_array_equal(array, np.zeros((5, 4)))
    array[...] = 42
    array.rotate()
    assert_array_equal(array, np.full((5, 4), 7))
    array.rotate()
    assert_array_equal(array, np.full((5, 4), 42))


def test_cell_next_and_previous() -> None:
    array = Array(batch_shape=(5, 4), dtype=np.float32, padding=1)
    array[...] = np.arange(np.prod(array.shape)).reshape(array.shape)
    array[-1] = np.arange(-4, 0)
    assert_array_equal(array, np.arange(20).reshape(5, 4))
    assert_array_equal(array.previous, np.arange(-4, 16).reshape(5, 4))
    assert_array_equal(array.next, [*np.arange(4, 20).reshape(4, 4), np.zeros(4)])
    assert_array_equal(array[2], [8, 9, 10, 11])
    assert_array_equal(array[2].previous, [4, 5, 6, 7])
    assert_array_equal(array[2].next, [12, 13, 14, 15])


# What a new Array is


@pytest.mark.parametrize(
    "dtype", ["f4", "i8", "?", "u1", "c8", "f2", "M8[s]", "S3", ">i4", "f4,i2"]
)
def test_a_new_array_is_zero(dtype: str) -> None:
    array = Array((3, 2), dtype, feature_shape=(2,), padding=1, full_size=6)
    assert array.dtype == np.dtype(dtype)
    assert_array_equal(everything(array), np.zeros((8, 2, 2), dtype))


def test_shapes_are_batch_and_features() -> None:
    array = Array((5, 4), np.float32, feature_shape=(3, 2), padding=2, full_size=15)
    assert (array.batch_shape, array.feature_shape) == ((5, 4), (3, 2))
    assert (array.shape, array.ndim, array.size) == ((5, 4, 3, 2), 4, 120)
    assert (len(array), array.first, array.last) == (5, 0, 4)
    assert (array.nbytes, array.allocated_nbytes) == (480, 4 * (15 + 4) * 24)
    assert (array.padding, array.full_size, array.storage) == (2, 15, "local")
    assert (array[1:3].padding, array[1:3].full_size) == (0, 2)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (5, 0)])
@pytest.mark.parametrize("feature_shape", [(), (0,), (3,)])
def test_an_empty_array_works_like_any_other(
    shape: tuple[int, ...], feature_shape: tuple[int, ...]
) -> None:
    array = Array(shape, np.float32, feature_shape=feature_shape, padding=min(shape[0], 1))
    array[...] = 1
    array.rotate()
    array.reset()
    assert array.size == 0
    assert array.to_torch().shape == array.full.shape == array.shape == shape + feature_shape
    assert pickle.loads(pickle.dumps(array)).shape == copy.deepcopy(array[...]).shape == array.shape


def test_lengths_may_be_numpy_integers() -> None:
    array = Array(np.array([4, 2]), np.float32, padding=np.int64(1), full_size=np.int8(8))
    assert (array.shape, array.full_size) == ((4, 2), 8)
    assert type(array.shape[0]) is int


def test_one_length_needs_no_tuple() -> None:
    array = Array(5, np.float32, feature_shape=3)
    assert (array.batch_shape, array.feature_shape) == ((5,), (3,))


@pytest.mark.parametrize(
    ("error", "what", "kwargs"),
    [
        (TypeError, "dtype: got object", {"dtype": object}),
        (TypeError, "dtype: got .*'a', 'O'", {"dtype": [("a", object)]}),
        (TypeError, "dtype: got StringDType", {"dtype": np.dtypes.StringDType()}),
        (TypeError, "dtype: got .*1 byte", {"dtype": str}),
        (ValueError, r"batch_shape: got \(\)", {"batch_shape": ()}),
        (ValueError, r"batch_shape: got \(5, -4\)", {"batch_shape": (5, -4)}),
        (TypeError, "float", {"batch_shape": (5.0, 4)}),
        (ValueError, r"feature_shape: got \(-1,\)", {"feature_shape": (-1,)}),
        (ValueError, "padding: got 6, expected 0 to 5", {"padding": 6}),
        (ValueError, "padding: got -1, expected 0 to 5", {"padding": -1}),
        (TypeError, "float", {"padding": 1.0}),
        (ValueError, "full_size: got 11, expected a multiple of 5", {"full_size": 11}),
        (ValueError, "full_size: got 0, expected a multiple of 5", {"full_size": 0}),
        (ValueError, "full_size: got -5, expected a multiple of 5", {"full_size": -5}),
        (ValueError, "storage: got 'disk', expected one of 'local'", {"storage": "disk"}),
    ],
)
def test_a_wrong_argument_is_an_error_that_says_what(
    error: type[Exception], what: str, kwargs: dict[str, Any]
) -> None:
    with pytest.raises(error, match=what):
        Array(**({"batch_shape": (5, 4), "dtype": np.float32} | kwargs))


# Windows


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("n_windows", [1, 2, 3])
def test_rotate_moves_no_byte_unless_it_wraps(padding: int, n_windows: int) -> None:
    T = 3
    array = Array((T, 2), np.int32, padding=padding, full_size=n_windows * T)
    base = everything(array).to_ndarray()
    base[...] = np.arange(base.size).reshape(base.shape)
    for n_rotations in range(1, 2 * n_windows + 1):
        before = base.copy()
        array.rotate()
        if n_rotations % n_windows == 0:
            before[: 2 * padding] = before[n_windows * T :].copy()
        assert_array_equal(base, before)
        first = padding + T * (n_rotations % n_windows)
        assert_array_equal(array, base[first : first + T])


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, int, int, list[set[int]]]:
    """Draw T, padding, full_size, and for each batch the rows that are written."""
    T = draw(st.sampled_from([1, 2, 3, 4]))
    padding = draw(st.sampled_from(range(T + 1)))
    full_size = T * draw(st.sampled_from([1, 2, 3]))
    rows = st.sets(st.sampled_from(range(T + padding)), min_size=0)
    whole = st.just(set(range(T)))
    batches = draw(st.lists(st.one_of(whole, rows, rows.map(set(range(T)).union)), max_size=9))
    return T, padding, full_size, batches


@LAW
@given(streams())
def test_rows_written_around_the_window_are_found_after_it_moved(case: Any) -> None:
    """What was written for a time is read at that time, up to `padding` rows before the window.

    The same holds for the rows that were written ahead of the window, into the next batch.
    """
    T, padding, full_size, batches = case
    array = Array((T,), np.int64, padding=padding, full_size=full_size)
    written = dict.fromkeys(range(-padding, 0), 0)  # by time; before the first batch it is zero
    value = 0
    for number, rows in enumerate(batches):
        for row in sorted(rows):
            value += 1
            array[row] = written[number * T + row] = value
        array.rotate()
        now = (number + 1) * T
        for time in range(now - padding, now + padding):
            if time in written:
                assert array[time - now].item() == written[time]


@LAW
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 9), st.data())
def test_padding_before_the_window_is_the_end_of_the_batch_before(
    T: int, n_windows: int, n_rotations: int, data: Any
) -> None:
    padding = data.draw(st.integers(0, T))
    array = Array((T,), np.int64, padding=padding, full_size=n_windows * T)
    for number in range(n_rotations):
        array[...] = 1 + number * T + np.arange(T)
        array.rotate()
    last = n_rotations * T
    expected = np.maximum(np.arange(last - padding, last) + 1, 0)
    assert_array_equal(array[-padding:0], expected if n_rotations else np.zeros(padding))


def test_a_padding_as_large_as_the_batch_carries_the_whole_batch_over() -> None:
    array = Array((3,), np.int32, padding=3)
    array[-3:6] = np.arange(1, 10)
    array.rotate()
    assert_array_equal(array[-3:6], [4, 5, 6, 7, 8, 9, 7, 8, 9])


@pytest.mark.parametrize("n_rotations", range(4))
@pytest.mark.parametrize("padding", [0, 1])
def test_after_reset_the_next_rotate_lands_at_the_beginning(n_rotations: int, padding: int) -> None:
    array = Array((2,), np.int32, padding=padding, full_size=6)
    array.full[...] = np.arange(6)
    for _ in range(n_rotations):
        array.rotate()
    before = everything_of_moved(array).copy()
    array.reset()
    assert_array_equal(everything_of_moved(array), before)  # no byte moves
    assert_array_equal(array, [4, 5])
    array.rotate()
    array.full[...] = np.arange(6)
    assert_array_equal(array, [0, 1])
    assert_array_equal(array.full[0], array[0])


def everything_of_moved(array: Array) -> np.ndarray:
    full = array.full
    return full[-array.padding : full.last + 1 + array.padding].to_ndarray()


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


@each_view
@pytest.mark.parametrize("is_looked_at", [False, True])
def test_view_stays_put_after_rotate(view_of: Callable[[Array], Array], is_looked_at: bool) -> None:
    array, other = counted(padding=1, full_size=10), counted(padding=1, full_size=10)
    view, same = view_of(array), view_of(other)
    if is_looked_at:
        assert view.to_ndarray().shape == view.shape
    array.rotate()
    assert_array_equal(view, same)
    assert view.shape == same.shape
    view[...] = -1  # a write goes to the old place too
    same[...] = -1
    array.reset()
    array.rotate()
    other.reset()
    other.rotate()
    assert_array_equal(everything(array), everything(other))


@each_view
def test_taking_a_view_does_not_disturb_the_parent(view_of: Callable[[Array], Array]) -> None:
    array, other = counted(padding=1, full_size=10), counted(padding=1, full_size=10)
    for _ in range(3):
        view = view_of(array)
        assert view.to_ndarray() is not None
        assert repr(view)
        assert (array.shape, array.full_size, array.padding) == ((5, 4), 10, 1)
        assert_array_equal(array, other)
        assert_array_equal(everything_of_moved(array), everything_of_moved(other))
        array.rotate()
        other.rotate()


def test_full_is_the_ring_without_the_padding() -> None:
    array = Array((2, 3), np.int32, padding=2, full_size=6)
    base = everything(array).to_ndarray()
    base[...] = np.arange(30).reshape(10, 3)
    for _ in range(4):
        assert array.full.shape == (6, 3)
        assert_array_equal(array.full, base[2:8])
        array.rotate()


@pytest.mark.parametrize("use", [Array.rotate, Array.reset, lambda array: array.full])
def test_a_view_has_no_window(use: Callable[[Array], Any]) -> None:
    array = counted()
    for view in (array[...], array[1], array[[0]], array.full, array[2:3][0]):
        with pytest.raises(TypeError, match="this Array is a view"):
            use(view)


# Next and previous


def test_next_and_previous_reach_into_the_padding() -> None:
    array = counted(padding=2)
    array[5:7] = [[20, 21, 22, 23], [24, 25, 26, 27]]
    assert_array_equal(array.next.next, np.arange(8, 28).reshape(5, 4))
    assert_array_equal(array[4].next, [20, 21, 22, 23])
    assert_array_equal(array[[4, 0], [1, 0]].next, [21, 4])
    assert_array_equal(array[::-1].next[0], [20, 21, 22, 23])
    assert_array_equal(array[np.eye(5, 4, dtype=bool)].next, [4, 9, 14, 19])
    assert array[3, 2].next.previous.item() == array[3, 2].item()


@pytest.mark.parametrize("name", ["next", "previous"])
def test_next_and_previous_outside_the_base_raise_index_error(name: str) -> None:
    array = counted()
    edge = -1 if name == "previous" else 1
    for view in (array, array[...], array[::edge], array[[0, 2, 4]], array.full):
        with pytest.raises(IndexError, match=f"{name}: .* base buffer of 5 rows.* padding=1"):
            getattr(view, name)
    with pytest.raises(IndexError, match=name):
        getattr(array[4 if name == "next" else 0, 1], name)


def test_a_lone_element_has_neither_next_nor_previous() -> None:
    for element in (clone(counted()[1, 1]), Array.from_dlpack(np.array(3.0))):
        with pytest.raises(IndexError, match=r"next: .* no rows"):
            _ = element.next
        with pytest.raises(IndexError, match=r"previous: .* no rows"):
            _ = element.previous


def test_next_is_written_in_place() -> None:
    array = counted(padding=1)
    array[1:3].next[...] = -1
    array[[4, 0], [3, 2]].previous[...] = -2
    assert_array_equal(array[2:4], [[-1] * 4, [-1, -1, -1, -2]])
    assert array[-1, 2].item() == -2


# Reading


def test_first_and_last_are_indices_of_the_visible_rows() -> None:
    array = counted(padding=1, full_size=10)
    assert_array_equal(array[array.first], [0, 1, 2, 3])
    assert_array_equal(array[array.last], [16, 17, 18, 19])
    assert (array[1:3].last, array.full.last, array[2].last) == (1, 9, 3)
    with pytest.raises(TypeError, match="without dimensions"):
        _ = array[0, 0].last


def test_iteration_stops_at_the_last_row() -> None:
    array = counted(padding=2, full_size=10)
    assert [row[0].item() for row in array] == [0, 4, 8, 12, 16]
    for row in array[::-2]:
        row[...] = -1
    assert_array_equal(array[:, 0], [-1, 4, -1, 12, -1])
    assert len(list(array)) == len(array)
    with pytest.raises(TypeError, match="without dimensions"):
        iter(array[0, 0])


def test_a_gathered_view_reads_as_a_read_only_copy() -> None:
    array = counted()
    for view in (array[[0, 1]], array[array.to_ndarray() > 3], array[0, [1, 2]]):
        ndarray = view.to_ndarray()
        with pytest.raises(ValueError, match="read-only"):
            ndarray[...] = 0
        assert not np.shares_memory(ndarray, array.to_ndarray())
        tensor = view.to_torch()
        tensor[...] = -1  # torch has no read-only tensors: this one is the reader's own
    assert_array_equal(array, np.arange(20).reshape(5, 4))


def test_a_gathered_view_shows_what_was_written_since() -> None:
    array = counted()
    view = array[[0, 2], [1, 3]]
    array[...] = 5
    assert_array_equal(view, [5, 5])
    view[...] = [6, 7]
    assert (array[0, 1].item(), array[2, 3].item()) == (6, 7)
    assert_array_equal(view, [6, 7])


def test_what_a_reader_does_to_its_ndarray_does_not_change_the_array() -> None:
    array = counted()
    for view, shape in ((array, (5, 4)), (array[1:3], (2, 4)), (array[2], (4,))):
        ndarray = view.to_ndarray()
        ndarray.setflags(write=False)
        assert view.to_ndarray().flags.writeable
        assert view.shape == view.to_ndarray().shape == shape
        view.to_torch()[...] = 7
        assert_array_equal(view, np.full(shape, 7))


@pytest.mark.parametrize("dtype", [None, np.float32, np.float64])
@pytest.mark.parametrize("is_gathered", [False, True])
@pytest.mark.parametrize("copy", [None, False, True])
def test_array_protocol_copies_as_numpy_2_says(
    dtype: type | None, is_gathered: bool, copy: bool | None
) -> None:
    array = counted()
    view = array[[0, 2]] if is_gathered else array[0:3:2]
    is_free = dtype is not np.float64 and not is_gathered
    if copy is False and not is_free:
        with pytest.raises(ValueError, match="copy"):
            np.array(view, dtype=dtype, copy=copy)
        return
    for out in (np.array(view, dtype=dtype, copy=copy), view.__array__(dtype, copy=copy)):
        assert out.dtype == (dtype or np.float32)
        assert_array_equal(out, [[0, 1, 2, 3], [8, 9, 10, 11]])
        assert np.shares_memory(out, array.to_ndarray()) is (is_free and not copy)
        assert out.flags.writeable or not copy


def test_numpy_functions_take_arrays() -> None:
    array = counted()
    assert np.shares_memory(np.asarray(array), array.to_ndarray())
    assert np.asarray(array, np.int64).dtype == np.int64
    assert np.mean(array) == 9.5
    assert_array_equal(np.stack([array[0], array[1]]), np.arange(8).reshape(2, 4))
    assert_array_equal(array[1].to_ndarray() - array[0], [4, 4, 4, 4])


def test_to_torch_shares_memory() -> None:
    array = counted(padding=1)
    tensor = array.to_torch()
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.float32, (5, 4))
    tensor[2, 1] = -1
    assert array[2, 1].item() == -1
    array[1:3, ::2].to_torch()[...] = 7
    assert_array_equal(array[1:3], [[7, 5, 7, 7], [7, -1, 7, 11]])
    array[3].to_torch().fill_(4)
    array[3, 0].to_torch().fill_(5)
    assert_array_equal(array[3], [5, 4, 4, 4])


def test_to_torch_says_what_torch_cannot_share() -> None:
    with pytest.raises(ValueError, match="positive step"):
        counted()[::-1].to_torch()
    with pytest.raises(TypeError):
        Array((2,), "M8[s]").to_torch()


@pytest.mark.parametrize("from_dlpack", [torch.from_dlpack, np.from_dlpack])
def test_dlpack_goes_out_without_a_copy(from_dlpack: Callable[[Any], Any]) -> None:
    array = counted(padding=1)
    assert array.__dlpack_device__() == (1, 0)  # kDLCPU
    for view in (array, array[1:3], array[:, 2], array[2, 2]):
        out = from_dlpack(view)
        assert_array_equal(np.asarray(out), view)
        view[...] = -view.to_ndarray()
        assert_array_equal(np.asarray(out), view)


def test_scalars_come_out_of_single_elements() -> None:
    array = counted(2, 2)
    one = array[1, 1]
    assert (one.item(), int(one), float(one), bool(one)) == (3.0, 3, 3.0, True)
    assert (type(one.item()), type(int(one)), type(float(one))) == (float, int, float)
    assert not array[0, 0]
    assert Array((1,), np.float32).item() == 0
    with pytest.raises(ValueError, match="ambiguous"):
        bool(array)
    with pytest.raises(ValueError, match="size 1"):
        array.item()
    with pytest.raises(TypeError):
        float(array)


def test_printing_shows_values_dtype_and_storage() -> None:
    array = Array((2, 2), np.int32, padding=1, full_size=4)
    array[-1], array[2] = 8, 9
    expected = "Array([[0, 0],\n       [0, 0]], dtype=int32, storage='local')"
    assert repr(array) == str(array) == f"{array}" == expected
    array[0, 1] = 5
    assert repr(array[0]) == "Array([0, 5], dtype=int32, storage='local')"
    assert repr(array[0, 1]) == "Array(5, dtype=int32, storage='local')"
    assert repr(array[[1, 0], [0, 1]]) == "Array([0, 5], dtype=int32, storage='local')"
    assert "..." in repr(Array((1000, 50), np.float32))


# Writing


VALUES: list[Any] = [
    *(3, 2.5, True, np.float32(1.5), np.int8(-3), np.array(4.0), torch.tensor(4.0)),
    *([1, 2, 3, 4], (1, 2, 3, 4), range(4), [[5], [6], [7]], [[8]], np.array([[[8]]])),
    *(np.arange(12).reshape(3, 4), np.arange(12.0).reshape(3, 4), np.eye(3, 4, dtype=bool)),
    *(np.arange(24, dtype="f8").reshape(4, 6)[:3, ::-2].repeat(2, 1)[:, :4], np.ones(4, ">f4")),
    *(torch.arange(4), torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.half)),
    *(torch.ones(4, requires_grad=True), torch.nn.Parameter(torch.ones(3, 4)), torch.ones(4) > 0),
    *(torch.arange(12.0).reshape(4, 3).T, torch.ones(4).double(), torch.eye(4)[:3]),
    *(counted(3), counted(3)[1], counted(3)[:, 2:3], counted(5)[[4, 2, 0]], counted(3)[0, 3]),
    *([torch.tensor(1.0), 2, 3, 4], [np.arange(4), np.ones(4), np.zeros(4)], [[0, 1, 2, 3]] * 3),
]


def as_numpy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().double().numpy()
    return np.asarray(value)


@pytest.mark.parametrize("value", VALUES)
def test_anything_that_looks_like_an_array_can_be_written(value: Any) -> None:
    array, expected = counted(), counted().to_ndarray()
    for index in ((slice(1, 4),), (slice(3, 0, -1),), ([0, 2, 4],), (np.arange(5) % 2 == 0,)):
        array[index] = value
        expected[index] = as_numpy(value)
        assert_array_equal(array, expected)
    if np.size(as_numpy(value)) == 1:
        array[2, 3] = array[0, 0][...] = np.ravel(as_numpy(value))[0]
        array[1, 1] = value if np.ndim(as_numpy(value)) == 0 else 0
    if np.ndim(as_numpy(value)) == 1:
        array[2] = value
        assert_array_equal(array[2], as_numpy(value))


def test_tensors_of_every_float_and_bool_arrive_exactly() -> None:
    values = [0.5, -1.25, 96.0, 0.0]
    array = Array((4,), np.float32)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        array[...] = torch.tensor(values, dtype=dtype)
        assert_array_equal(array, values)
    flags = Array((4,), bool)
    flags[...] = torch.tensor(values) > 0
    assert_array_equal(flags, [True, False, True, False])
    complex_array = Array((2,), np.complex64)
    complex_array[...] = torch.tensor([1 + 2j, 3j]).conj()
    assert_array_equal(complex_array, [1 - 2j, -3j])


class OnlyDLPack:
    """Hands its memory out through DLPack and in no other way."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __dlpack__(self, **options: Any) -> Any:
        return self._owner.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._owner.__dlpack_device__()


@pytest.mark.parametrize("owner", [np.arange(4.0), torch.arange(4.0), counted(1)[0]])
def test_objects_that_know_only_dlpack_can_be_written(owner: Any) -> None:
    array = Array((2, 4), np.float32)
    array[1] = OnlyDLPack(owner)
    array[0, ::-1] = OnlyDLPack(owner)
    assert_array_equal(array, [[3, 2, 1, 0], [0, 1, 2, 3]])
    assert_array_equal(Array.from_numpy(OnlyDLPack(owner)), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("to", "source"),
    [
        (np.s_[1:], np.s_[:4]),
        (np.s_[:4], np.s_[1:]),
        (np.s_[...], np.s_[::-1]),
        (np.s_[:, 1:], np.s_[:, :3]),
        (np.s_[[0, 1, 2]], np.s_[[1, 2, 0]]),
        (np.s_[[4, 3, 2]], np.s_[0:3]),
        (np.s_[2:5], np.s_[[0, 2, 4]]),
        (np.s_[...], np.s_[0]),
    ],
)
def test_overlapping_arrays_are_written_as_if_copied_first(to: Any, source: Any) -> None:
    array, expected = counted(), counted().to_ndarray()
    array[to] = array[source]
    expected[to] = expected[source].copy()
    assert_array_equal(array, expected)


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
    index: Any, value: Any, got: str, expected: str
) -> None:
    array = counted()
    with pytest.raises(ValueError, match=r"^writing a value of shape") as caught:
        array[index] = value
    assert got in str(caught.value)
    assert any(shape in str(caught.value) for shape in expected.split("|"))
    assert_array_equal(array, np.arange(20).reshape(5, 4))


def test_item_assignment_works_as_an_operator() -> None:
    array = counted()
    operator.setitem(array[np.array([1, 3]), np.array([0, 2])], ..., 42)
    assert [array[1, 0].item(), array[3, 2].item()] == [42, 42]
    assert (array.to_ndarray() == 42).sum() == 2


# Made after others


@pytest.mark.parametrize(
    ("example", "dtype"),
    [
        (np.zeros(3, np.float64), np.float32),
        (np.zeros(3, np.int64), np.int32),
        (np.zeros(3, np.uint64), np.uint32),
        (np.zeros(3, np.complex128), np.complex64),
        (np.zeros(3, ">f8"), np.float32),
        (np.zeros(3, np.float16), np.float16),
        (np.zeros(3, np.uint8), np.uint8),
        (np.zeros(3, bool), bool),
        (np.zeros(3, "M8[s]"), "M8[s]"),
        ([1, 2, 3], np.int32),
        ([1.0, 2.0, 3.0], np.float32),
        (torch.zeros(3, dtype=torch.float64), np.float32),
        (torch.zeros(3, dtype=torch.int64), np.int32),
        (torch.zeros(3, dtype=torch.bfloat16), np.float32),
        (torch.zeros(3, dtype=torch.bool), bool),
        (torch.zeros(3, requires_grad=True), np.float32),
        (Array((3,), np.int64), np.int32),
    ],
)
def test_from_numpy_narrows_64_bits(example: Any, dtype: Any) -> None:
    assert Array.from_numpy(example).dtype == np.dtype(dtype)
    assert Array.from_numpy(example, batch_shape=(2, 3)).dtype == np.dtype(dtype)
    assert Array.from_numpy(example, batch_shape=(2, 3)).feature_shape == (3,)


@pytest.mark.parametrize("example", [np.arange(3.0), np.arange(3), torch.arange(3).double()])
def test_from_numpy_keeps_64_bits_when_told(example: Any) -> None:
    dtype = as_numpy(example).dtype if isinstance(example, torch.Tensor) else example.dtype
    assert Array.from_numpy(example, force_32bit=False).dtype == dtype
    assert Array.from_numpy(example, dtype=np.float64).dtype == np.float64
    assert Array.from_numpy(example, dtype="i8", batch_shape=(2,)).dtype == np.int64
    assert Array.from_numpy(example, dtype=np.float16, force_32bit=False).dtype == np.float16


def test_from_numpy_copies_the_example() -> None:
    example = np.arange(6.0).reshape(3, 2)
    array = Array.from_numpy(example, padding=1, full_size=6, storage="shared")
    assert (array.batch_shape, array.feature_shape) == ((3, 2), ())
    assert (array.padding, array.full_size, array.storage) == (1, 6, "shared")
    example[...] = -1
    assert_array_equal(array, np.arange(6).reshape(3, 2))
    array.rotate()
    assert_array_equal(array, np.zeros((3, 2)))


def test_from_numpy_with_a_batch_shape_makes_room_for_rows_like_the_example() -> None:
    array = Array.from_numpy(np.ones((3, 2)), batch_shape=(5, 4), padding=1)
    assert (array.batch_shape, array.feature_shape, array.padding) == ((5, 4), (3, 2), 1)
    assert_array_equal(everything(array), np.zeros((7, 4, 3, 2)))


@pytest.mark.parametrize("example", [3.0, 3, True, np.float64(3), np.array(3), torch.tensor(3)])
def test_from_numpy_takes_scalars_with_a_batch_shape(example: Any) -> None:
    array = Array.from_numpy(example, batch_shape=(5, 4))
    assert (array.shape, array.feature_shape) == ((5, 4), ())
    with pytest.raises(ValueError, match=r"batch_shape: got \(\)"):
        Array.from_numpy(example)


@pytest.mark.parametrize("example", [object(), {"a": 1}, [object()], None, np.array([None])])
def test_from_numpy_of_python_objects_raises_type_error(example: Any) -> None:
    with pytest.raises(TypeError, match="dtype: got object"):
        Array.from_numpy(example, batch_shape=(5,))


@pytest.mark.parametrize("source", [np.arange(12.0).reshape(4, 3), torch.arange(12.0).view(4, 3)])
def test_from_dlpack_is_a_view_of_the_others_memory(source: Any) -> None:
    array = Array.from_dlpack(source, n_batch_dims=1)
    assert (array.batch_shape, array.feature_shape, array.storage) == ((4,), (3,), "local")
    assert Array.from_dlpack(source).batch_shape == (4, 3)
    array[1] = -1
    source[2, 0] = -2
    assert_array_equal(np.asarray(source), array)
    assert_array_equal(array[:, 0], [0, -1, -2, 9])
    assert_array_equal(array[1:3].next[:, 1], [7, 10])
    with pytest.raises(TypeError, match="view"):
        array.rotate()
    array.close()
    assert source[1, 1] == -1


def test_from_dlpack_keeps_the_owner_alive() -> None:
    source = np.arange(4.0)
    gone = weakref.ref(source)
    array = Array.from_dlpack(source)
    del source
    gc.collect()
    assert gone() is not None
    assert_array_equal(array, [0, 1, 2, 3])
    array.close()
    gc.collect()
    assert gone() is None


def test_from_dlpack_of_strides_and_read_only_memory() -> None:
    source = np.arange(12.0).reshape(4, 3)
    assert_array_equal(Array.from_dlpack(source[::-2, 1:])[1], [4, 5])
    source.setflags(write=False)
    array = Array.from_dlpack(source)
    assert_array_equal(array[1], [3, 4, 5])
    with pytest.raises(ValueError, match="read-only"):
        array[1] = 0


def test_new_array_differs_in_what_is_given() -> None:
    array = Array((5, 4), np.float32, feature_shape=(3,), padding=1, full_size=10)
    array[...] = 1
    same = array.new_array()
    assert same.spec == array.spec
    assert not same.to_ndarray().any()
    assert array.new_array(dtype=bool, padding=2).dtype == bool
    assert array.new_array(padding=0).full_size == 10
    assert array.new_array(feature_shape=()).shape == (5, 4)
    assert array.new_array(storage="shared").storage == "shared"
    assert array.new_array(batch_shape=(10, 2)).full_size == 10
    assert array.new_array(full_size=20).allocated_nbytes == 22 * 4 * 3 * 4


def test_new_array_of_a_view_goes_by_what_is_visible() -> None:
    array = Array((5, 4), np.int16, feature_shape=(3,), padding=1, full_size=10)
    new = array[1:3].new_array()
    assert (new.batch_shape, new.feature_shape) == ((2, 4), (3,))
    assert (new.padding, new.full_size) == (0, 2)
    assert array[0, 0].new_array(batch_shape=(7,)).shape == (7, 3)
    assert array[0, 0, 0].new_array(batch_shape=(7,)).shape == (7,)
    with pytest.raises(ValueError, match=r"batch_shape: got \(\)"):
        array[0, 0].new_array()


# Copies and pickles of local Arrays


def clone(array: Array) -> Array:
    return pickle.loads(pickle.dumps(array))


each_copier = pytest.mark.parametrize("copier", [clone, copy.deepcopy])


@each_copier
@pytest.mark.parametrize("n_rotations", range(4))
def test_a_copy_has_its_own_rows_padding_and_window(
    copier: Callable[[Array], Array], n_rotations: int
) -> None:
    array = Array((2, 3), np.int32, feature_shape=(2,), padding=1, full_size=6)
    base = everything(array).to_ndarray()
    base[...] = np.arange(base.size).reshape(base.shape)
    for _ in range(n_rotations):
        array.rotate()
    other = copier(array)
    assert (other.spec, other.storage) == (array.spec, array.storage)
    for _ in range(4):
        assert_array_equal(other, array)
        assert_array_equal(everything_of_moved(other), everything_of_moved(array))
        array.rotate()
        other.rotate()
    other[...] = -1
    assert not (base == -1).any()


@each_copier
@each_view
def test_a_copy_of_a_view_has_its_own_values(
    copier: Callable[[Array], Array], view_of: Callable[[Array], Array]
) -> None:
    array = counted(padding=1, full_size=10)
    view = view_of(array)
    other = copier(view)
    assert_array_equal(other, view)
    assert (other.batch_shape, other.feature_shape) == (view.batch_shape, view.feature_shape)
    other[...] = -1
    assert_array_equal(array, counted())
    assert_array_equal(other, np.full(view.shape, -1))


@each_copier
def test_a_copy_of_a_view_keeps_features_apart_from_batch_dimensions(
    copier: Callable[[Array], Array],
) -> None:
    array = Array((5, 4), np.float32, feature_shape=(3, 2))
    array[...] = np.arange(120).reshape(5, 4, 3, 2)
    for view in (array[1:], array[2], array[2, 1], array[2, 1, 0], array[:, :, 1], array[[0, 1]]):
        other = copier(view)
        assert_array_equal(other, view)
        assert (other.batch_shape, other.feature_shape) == (view.batch_shape, view.feature_shape)
        assert_array_equal(other[...], view)


@each_copier
@pytest.mark.parametrize("dtype", ["?", "f2", "c8", "M8[s]", "m8[s]", "S3", "U2", "f4,i2"])
def test_arrays_of_every_dtype_are_copied(copier: Callable[[Array], Array], dtype: str) -> None:
    array = Array((4, 2), dtype, padding=1)
    array[...] = np.arange(8).astype("i4" if "," in dtype else dtype).reshape(4, 2)
    for view in (array, array[1:3], array[2, 1], array[[0, 3]]):
        other = copier(view)
        assert other.dtype == view.dtype
        assert_array_equal(other, view)


def test_copy_copy_is_a_view() -> None:
    array = counted(padding=1)
    for view in (array, array[1:3], array[2, 2], array[[0, 1]]):
        other = copy.copy(view)
        other[...] = -1
        assert_array_equal(view, np.full(view.shape, -1))
        with pytest.raises(TypeError):
            other.rotate()


# Life


def test_a_view_keeps_the_memory_of_its_parent() -> None:
    array = counted()
    view, gone = array[2], weakref.ref(array)
    del array
    gc.collect()
    assert gone() is None
    assert_array_equal(view, [8, 9, 10, 11])


def test_memory_goes_with_the_last_reference() -> None:
    array = counted(padding=1)
    gone = weakref.ref(array.to_ndarray().base)
    array[1:3][0].to_ndarray()
    array.rotate()
    del array
    assert gone() is None  # at once: no cycle waits for the garbage collector


USES: list[Callable[[Array], Any]] = [
    lambda array: array.to_ndarray(),
    lambda array: array.to_torch(),
    lambda array: np.asarray(array),
    lambda array: np.from_dlpack(array),
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
    lambda array: operator.setitem(array, 0, 1),
    lambda array: operator.setitem(array, (0, 1), 1),
    lambda array: operator.setitem(array, ..., 1),
    lambda array: operator.setitem(array, [0], 1),
    lambda array: array.next.to_ndarray(),
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("is_looked_at", [False, True])
def test_a_closed_array_raises_value_error(use: Callable[[Array], Any], is_looked_at: bool) -> None:
    array = counted(padding=1)
    view = array[0:3]
    if is_looked_at:  # what was looked up before must not be used after
        for kept in (array, view):
            assert_array_equal(kept[0], [0, 1, 2, 3])
            kept[0, 0] = kept.to_ndarray()[0, 0]
    array.close()
    for closed in (array, view):
        with pytest.raises(ValueError, match="closed"):
            use(closed)


def test_a_row_that_was_read_before_is_closed_with_its_array() -> None:
    array = counted()
    rows = [array[1], array[1, 2], array[1:2], array[[1]]]
    shown = [row.to_ndarray() for row in rows]
    array.close()
    for row in rows:
        with pytest.raises(ValueError, match="closed"):
            row.to_ndarray()
        with pytest.raises(ValueError, match="closed"):
            row[...] = 0
    assert_array_equal(shown[0], [4, 5, 6, 7])  # what was taken before stays valid


def test_close_is_idempotent_and_a_closed_array_still_tells_what_it_was() -> None:
    array = counted(padding=1)
    ndarray, tensor = array.to_ndarray(), array.to_torch()
    array.close()
    array.close()
    assert (array.shape, array.dtype, array.storage, len(array)) == ((5, 4), "f4", "local", 5)
    assert repr(array) == "Array(closed, shape=(5, 4), dtype=float32)"
    assert_array_equal(ndarray, np.arange(20).reshape(5, 4))
    assert_array_equal(tensor.numpy(), ndarray)


def test_closing_a_view_closes_that_view_alone() -> None:
    array = counted()
    view, other = array[1:3], array[1:3]
    below = view[0]
    view.close()
    view.close()
    with pytest.raises(ValueError, match="closed"):
        view.to_ndarray()
    with pytest.raises(ValueError, match="closed"):
        view[0] = 1
    for open_one in (array[1:3], other, array):
        open_one[0] = -1
    assert_array_equal(below, [-1, -1, -1, -1])


def test_a_context_manager_closes_the_array() -> None:
    with counted() as array:
        view = array[0]
        assert_array_equal(view, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="closed"):
        view.to_ndarray()
    with pytest.raises(KeyError), counted() as array:  # also when the block raises
        raise KeyError
    with pytest.raises(ValueError, match="closed"):
        array.to_ndarray()


def test_arrays_are_compared_by_identity() -> None:
    array = counted()
    same = array
    assert array == same
    assert array != counted()
    assert len({array, same, array[0], array[0]}) == 3


def test_threads_read_and_write_views_of_one_array() -> None:
    array = Array((64, 8), np.int64, padding=1)
    n_rounds = 50
    start = threading.Barrier(8)

    def count_up(column: int) -> None:
        start.wait(timeout=30)
        for _ in range(n_rounds):
            for t in range(64):
                array[t, column] = array[t, column].item() + 1
            array[:, column][::2] = array[::2, column].to_ndarray() + 1

    threads = [threading.Thread(target=count_up, args=(column,)) for column in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert_array_equal(array[::2], np.full((32, 8), 2 * n_rounds))
    assert_array_equal(array[1::2], np.full((32, 8), n_rounds))


@pytest.mark.parametrize(
    "use",
    [
        lambda array: array.rotate(),
        lambda array: array.reset(),
        lambda array: array.full,
        lambda array: array[1].next,
        lambda array: array[1].previous,
    ],
)
def test_a_closed_array_does_not_move(use: Callable[[Array], Any]) -> None:
    array = Array((4,), np.float32)
    array.close()
    with pytest.raises(ValueError, match="the Array is closed"):
        use(array)


def test_a_ragged_list_is_an_error_that_names_the_array() -> None:
    array = Array((2, 2), np.float32)
    with pytest.raises(ValueError, match=r"writing a list of .* into an Array of shape \(2, 2\)"):
        array[...] = [[1, 2], [3]]


def test_storage_is_a_word_or_a_block() -> None:
    with pytest.raises(TypeError, match="storage: got 5, expected a kind of memory or a block"):
        Array((2,), np.float32, storage=5)  # type: ignore[arg-type]  # the error is wanted
