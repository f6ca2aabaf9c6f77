"""Copies whose addresses each launch is told: the bytes that an assignment of NumPy writes."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from parllel import Array, cuda
from parllel.ops.copy_grid import split_row
from parllel.ops.launching import SIZES
from parllel.ops.table_copy import ENTRY_NUMBERS, Pieces, TableCopy, find_pieces, most_pieces
from parllel.testing.simulated_cuda import simulated_cuda

INTEGERS = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
OTHERS = ("f4", "f8", "?", "c8")


def values_of(shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    """Return values that use all bytes of their dtype."""
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    drawn = np.random.default_rng(n).integers(0, 2 if dtype == "?" else 256, n, np.uint8)
    return drawn.view(dtype).reshape(shape)


def pieces_of(written: Any, read: Any) -> Pieces | None:
    return find_pieces(read.shape, written.dtype, read.strides, read.dtype)


def copy_between(pairs: list[tuple[Any, Any]]) -> None:
    """Copy arrays of a device to others by one launch, with a table that has just enough room."""
    n_rows = len(pairs[0][0])
    leaves = [pieces_of(*pair) for pair in pairs]
    assert None not in leaves
    n_pieces = sum(most_pieces(written.shape, written.dtype) for written, _ in pairs)
    table = Array((n_pieces, ENTRY_NUMBERS), np.int64, storage="pinned")
    copy = TableCopy(leaves, table.to_ndarray(), table.to_cupy())  # type: ignore[arg-type]
    addresses = [np.array([array.data.ptr for array in side]) for side in zip(*pairs, strict=True)]
    stream = copy.run(addresses[0], addresses[1], n_rows)
    cuda.Event().record(stream).synchronize()


@pytest.mark.parametrize("dtype", INTEGERS + OTHERS)
@pytest.mark.parametrize("shape", [(4,), (3, 2), (2, 3, 5), (1, 1), (5, 0), (2, 17)])
def test_rows_of_one_dtype_are_copied(
    shape: tuple[int, ...], dtype: str, cuda_device: torch.device
) -> None:
    values = values_of(shape, dtype)
    written, read = cuda.to_device(np.zeros_like(values)), cuda.to_device(values)
    copy_between([(written, read)])
    assert written.get().tobytes() == values.tobytes()


@pytest.mark.parametrize("nbytes", [SIZES.part_nbytes - 1, SIZES.part_nbytes + 1, 70_001])
def test_long_rows_are_parts(nbytes: int, cuda_device: torch.device) -> None:
    values = values_of((3, nbytes), "u1")
    written, read = cuda.to_device(np.zeros_like(values)), cuda.to_device(values)
    found = pieces_of(written, read)
    assert found is not None
    assert len(found.pieces) == len(split_row(nbytes)) == most_pieces((3, nbytes), np.dtype("u1"))
    copy_between([(written, read)])
    assert_array_equal(written.get(), values)


@given(st.data())
def test_any_view_is_copied_as_numpy_assigns_it_or_not_at_all(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(rank))
    steps = tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
    source = data.draw(st.sampled_from(INTEGERS + OTHERS))
    dtype = data.draw(st.sampled_from((source, *INTEGERS)))
    whole = values_of(tuple(n * step for n, step in zip(shape, steps, strict=True)), source)
    index = tuple(slice(0, n * step, step) for n, step in zip(shape, steps, strict=True))
    expected = np.zeros(shape, dtype)
    with simulated_cuda("lazy"), np.errstate(all="ignore"):
        read, written = cuda.to_device(whole)[index], cuda.to_device(expected)
        if pieces_of(written, read) is None:
            is_wider = np.dtype(dtype).itemsize > np.dtype(source).itemsize
            assert dtype != source or np.prod(shape[1:]) > 16
            assert is_wider or {source, dtype} - {*INTEGERS} or np.prod(shape[1:]) > 16
            return
        expected[...] = whole[index]
        copy_between([(written, read)])
        assert written.get().tobytes() == expected.tobytes()


def test_integers_are_narrowed_to_their_low_bytes(cuda_device: torch.device) -> None:
    wide = np.array([[-1, 2**31], [2**40 + 7, -(2**33) - 5], [255, 256]])
    read = cuda.to_device(wide)
    pairs = [(cuda.to_device(np.zeros(wide.shape, dtype)), read) for dtype in INTEGERS]
    copy_between(pairs)
    for written, _ in pairs:
        assert_array_equal(written.get(), wide.astype(written.dtype))


@pytest.mark.parametrize(
    ("dtype", "source"),
    [("i8", "i4"), ("f4", "f8"), ("f8", "f4"), ("i4", "f4"), ("?", "i4"), ("i4", "?"), ("u1", "?")],
)
def test_what_bytes_can_not_convert_has_no_pieces(dtype: str, source: str) -> None:
    assert find_pieces((3,), np.dtype(dtype), (8,), np.dtype(source)) is None


def test_a_row_that_is_read_backwards_has_no_pieces() -> None:
    backwards = np.zeros((3, 2), np.int64)[::-1]
    assert pieces_of(backwards, backwards) is None


def test_rows_that_lie_on_each_other_are_read_as_they_are(cuda_device: torch.device) -> None:
    read = cuda.to_device(np.array([7]))
    pieces = find_pieces((3,), np.dtype("i4"), (0,), np.dtype("i8"))
    assert pieces is not None
    assert pieces.source_nbytes == 8
    table = Array((1, ENTRY_NUMBERS), np.int64, storage="pinned")
    written = cuda.to_device(np.zeros(3, np.int32))
    copy = TableCopy([pieces], table.to_ndarray(), table.to_cupy())
    stream = copy.run(np.array([written.data.ptr]), np.array([read.data.ptr]), 3)
    cuda.Event().record(stream).synchronize()
    assert written.get().tolist() == [7, 7, 7]


def test_one_copy_goes_elsewhere_each_time(cuda_device: torch.device) -> None:
    wide, narrow = np.dtype("i8"), np.dtype("i4")
    rows = cuda.to_device(np.arange(24).reshape(4, 3, 2))
    written = cuda.to_device(np.zeros((4, 3, 2), np.int32))
    pieces = find_pieces((3, 2), narrow, (16, 8), wide)
    assert pieces is not None
    table = Array((2, ENTRY_NUMBERS), np.int64, storage="pinned")
    copy = TableCopy([pieces], table.to_ndarray(), table.to_cupy())
    for t in range(4):
        places = (np.array([array[each].data.ptr]) for array, each in ((written, 3 - t), (rows, t)))
        stream = copy.run(*places, 3)
        cuda.Event().record(stream).synchronize()  # before the table is written anew
    assert_array_equal(written.get(), rows.get()[::-1])


def test_a_table_that_is_written_too_early_is_found() -> None:
    with simulated_cuda("lazy"):
        rows, written = cuda.to_device(np.array([5, 6])), cuda.to_device(np.zeros(2, np.int64))
        pieces = find_pieces((1,), np.dtype("i8"), (8,), np.dtype("i8"))
        assert pieces is not None
        table = Array((1, ENTRY_NUMBERS), np.int64, storage="pinned")
        copy = TableCopy([pieces], table.to_ndarray(), table.to_cupy())
        for t in range(2):  # without a wait between
            copy.run(np.array([written[t:].data.ptr]), np.array([rows[t:].data.ptr]), 1)
        assert written.get().tolist() == [0, 6]  # the first launch read the second one's table
