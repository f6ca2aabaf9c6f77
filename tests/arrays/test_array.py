"""Array: what does not depend on its memory, and what is special to local memory.

The rest is in the contracts of parllel.testing (tests/storages/test_host_memory.py and
test_cuda_memory.py).
"""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from parllel import Array, FrameArray
from parllel.testing.contracts.array_writing_contract import OnlyDLPack


def counted(T: int = 5, B: int = 4, **kwargs: Any) -> Array:
    """Return an Array of which each element is its place: 0, 1, 2, ..."""
    array = Array((T, B), np.float32, **kwargs)
    array[...] = np.arange(T * B).reshape(T, B)
    return array


# The notebook, cell by cell


def test_cell_array() -> None:
    array = Array(batch_shape=(5, 4), dtype=np.float32)
    array[:] = np.arange(4)
    assert_array_equal(array, np.tile(np.arange(4), (5, 1)))
    assert "0., 1., 2., 3." in str(array)
    ndarray = array.to_ndarray()
    assert_array_equal(ndarray.sum(axis=-1), [6, 6, 6, 6, 6])
    ndarray[0, 0] = 9  # this operation does not copy the data
    assert array[0, 0].item() == 9


# What a new Array is


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


# Next and previous


def test_a_lone_element_has_neither_next_nor_previous() -> None:
    for element in (pickle.loads(pickle.dumps(counted()[1, 1])), Array.from_dlpack(np.array(3.0))):
        with pytest.raises(IndexError, match=r"next: .* no rows"):
            _ = element.next
        with pytest.raises(IndexError, match=r"previous: .* no rows"):
            _ = element.previous


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
    dtype = np.float64 if isinstance(example, torch.Tensor) else example.dtype
    assert Array.from_numpy(example, force_32bit=False).dtype == dtype
    assert Array.from_numpy(example, dtype=np.float64).dtype == np.float64
    assert Array.from_numpy(example, dtype="i8", batch_shape=(2,)).dtype == np.int64
    assert Array.from_numpy(example, dtype=np.float16, force_32bit=False).dtype == np.float16


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


@pytest.mark.parametrize("owner", [np.arange(4.0), torch.arange(4.0), counted(1)[0]])
def test_from_numpy_takes_objects_that_know_only_dlpack(owner: Any) -> None:
    assert_array_equal(Array.from_numpy(OnlyDLPack(owner)), [0, 1, 2, 3])


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


# Life


def test_memory_goes_with_the_last_reference() -> None:
    array = counted(padding=1)
    gone = weakref.ref(array.to_ndarray().base)
    array[1:3][0].to_ndarray()
    array.rotate()
    del array
    assert gone() is None  # at once: no cycle waits for the garbage collector


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


def test_storage_is_a_word_or_a_block() -> None:
    with pytest.raises(TypeError, match="storage: got 5, expected a kind of memory or a block"):
        Array((2,), np.float32, storage=5)  # type: ignore[arg-type]  # the error is wanted


@given(st.data())
def test_a_slice_stays_on_the_grid_of_its_view(data: st.DataObject) -> None:
    """Against plain counting: index n of a view is position start + n * step, if memory has it."""
    padding, n_rows = data.draw(st.integers(0, 3)), data.draw(st.integers(3, 9))
    array = Array((n_rows,), np.int64, padding=padding)
    extent = n_rows + 2 * padding
    array[-padding : n_rows + padding] = np.arange(extent)
    ends, steps = st.none() | st.integers(-12, 12), st.sampled_from([None, 1, 2, 3, -1, -2, -3])
    view = array[slice(data.draw(ends), data.draw(ends), data.draw(steps))]
    grid = view._location[0]
    assert isinstance(grid, range)
    index = slice(data.draw(ends), data.draw(ends), data.draw(steps))

    def is_there(number: int) -> bool:
        return 0 <= grid.start + number * grid.step < extent

    step = index.step or 1
    first = index.start if index.start is not None else (0 if step > 0 else len(grid) - 1)
    end = index.stop if index.stop is not None else (len(grid) if step > 0 else -1)
    reach = [number for number in range(-30, 31) if is_there(number)]
    if reach:  # ends outside memory are cut off, as NumPy does
        first = max(first, reach[0]) if step > 0 else min(first, reach[-1])
    numbers = [number for number in range(first, end, step) if is_there(number)]
    shown = view[index].to_ndarray().tolist()
    assert shown == [grid.start + number * grid.step for number in numbers]


def test_a_slice_that_leaves_memory_shows_its_own_grid() -> None:
    array = Array((10,), np.int64, padding=2)
    array[-2:12] = np.arange(-2, 12)
    assert array[1::2][-1:3].to_ndarray().tolist() == [-1, 1, 3, 5]
    assert array[1::2][-9:2].to_ndarray().tolist() == [-1, 1, 3]
    assert array[::2][-9:2].to_ndarray().tolist() == [-2, 0, 2]
    assert array[::-2][-9:2].to_ndarray().tolist() == [11, 9, 7]
    assert array[::-2][9::-1].to_ndarray().tolist()[:2] == [-1, 1]
    assert array[2:2:3][-9:9].shape[0] <= 5


# Places


def test_an_array_tells_whether_it_is_where_another_one_was() -> None:
    array = Array((3, 2), np.float32, full_size=6)
    place = array.place
    assert place is not None
    assert array.is_at(place)
    assert array[...].is_at(place)
    assert array[:3, :].is_at(place)
    for other in (array[:2], array[:, :1], array[1], array[[0, 1, 2]], array.full):
        assert not other.is_at(place)
    assert not Array((3, 2), np.float32, full_size=6).is_at(place)
    array.rotate()
    assert not array.is_at(place)
    array.rotate()
    assert array.is_at(place)


def test_what_reading_copies_and_what_is_closed_has_no_place() -> None:
    array = Array((3, 2), np.float32)
    assert array[[0, 1]].place is None
    assert FrameArray((3, 2), np.uint8, (4, 5), stack=4).place is None
    place = array.place
    array.close()
    assert array.place is None
    assert place is not None
    assert not array.is_at(place)


def test_a_rotation_of_a_single_window_leaves_what_is_read_where_it_is() -> None:
    array = Array((3, 2), np.float32, padding=1)
    array[3] = 7
    place, before = array.place, array.to_ndarray()
    assert place is not None
    array.rotate()
    assert array.is_at(place)
    assert np.shares_memory(array.to_ndarray(), before)
    assert (array[0].to_ndarray() == 7).all()
    assert (before[0] == 7).all()
