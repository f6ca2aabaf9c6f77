"""ArrayReadingContract: what a new Array is, and how its elements come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from torch.utils.dlpack import from_dlpack

from parllel.arrays import Array
from parllel.testing.contracts.array_case import (
    COMPUTABLE_DTYPES,
    OTHER_DTYPES,
    ArrayCase,
    values_of,
    whole,
)


class ArrayReadingContract(ArrayCase):
    """Arrays say what they are, and hand their values to NumPy, torch and others."""

    # New Arrays

    @pytest.mark.parametrize("dtype", COMPUTABLE_DTYPES + OTHER_DTYPES)
    def test_a_new_array_is_zero(self, dtype: str) -> None:
        options: dict[str, Any] = {"feature_shape": (2,), "padding": 1, "full_size": 6}
        if dtype not in self.dtypes:
            with pytest.raises(TypeError, match="dtype: got "):
                self.array((3, 2), dtype, **options)
            return
        array = self.array((3, 2), dtype, **options)
        assert array.dtype == np.dtype(dtype)
        self.assert_shows(whole(array), np.zeros((8, 2, 2), dtype))

    def test_shapes_are_batch_and_features(self) -> None:
        array = self.array((5, 4), feature_shape=(3, 2), padding=2, full_size=15)
        assert (array.batch_shape, array.feature_shape) == ((5, 4), (3, 2))
        assert (array.shape, array.ndim, array.size) == ((5, 4, 3, 2), 4, 120)
        assert (len(array), array.first, array.last) == (5, 0, 4)
        assert (array.nbytes, array.allocated_nbytes) == (480, 4 * (15 + 4) * 24)
        assert (array.padding, array.full_size, array.storage) == (2, 15, self.storage)
        assert (array[1:3].padding, array[1:3].full_size) == (0, 2)

    @pytest.mark.parametrize("shape", [(0,), (0, 4), (5, 0)])
    @pytest.mark.parametrize("feature_shape", [(), (0,), (3,)])
    def test_an_empty_array_works_like_any_other(
        self, feature_shape: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        array = self.array(shape, feature_shape=feature_shape, padding=min(shape[0], 1))
        array[...] = 1
        array.rotate()
        array.reset()
        assert array.size == 0
        assert array.to_torch().shape == array.full.shape == array.shape == shape + feature_shape
        for copier in self.copiers:
            assert copier(array).shape == copier(array[...]).shape == array.shape

    def test_from_numpy_copies_the_example(self) -> None:
        example = np.arange(6.0).reshape(3, 2)
        array = Array.from_numpy(example, padding=1, full_size=6, storage=self.storage)
        assert (array.batch_shape, array.feature_shape) == ((3, 2), ())
        assert (array.padding, array.full_size, array.storage) == (1, 6, self.storage)
        example[...] = -1
        self.assert_shows(array, np.arange(6).reshape(3, 2))
        array.rotate()
        self.assert_shows(array, np.zeros((3, 2)))

    def test_from_numpy_with_a_batch_shape_makes_room_for_rows_like_the_example(self) -> None:
        array = Array.from_numpy(
            np.ones((3, 2)), batch_shape=(5, 4), padding=1, storage=self.storage
        )
        assert (array.batch_shape, array.feature_shape, array.padding) == ((5, 4), (3, 2), 1)
        self.assert_shows(whole(array), np.zeros((7, 4, 3, 2)))

    def test_new_array_differs_in_what_is_given(self) -> None:
        array = self.array((5, 4), feature_shape=(3,), padding=1, full_size=10)
        array[...] = 1
        same = array.new_array()
        assert (same.spec, same.storage) == (array.spec, self.storage)
        assert not self.read(same).any()
        assert array.new_array(dtype=bool, padding=2).dtype == bool
        assert array.new_array(padding=0).full_size == 10
        assert array.new_array(feature_shape=()).shape == (5, 4)
        assert array.new_array(storage="local").storage == "local"
        assert array.new_array(batch_shape=(10, 2)).full_size == 10
        more = array.new_array(full_size=20)  # and two rows of padding
        assert more.allocated_nbytes * 12 == array.allocated_nbytes * 22

    def test_new_array_of_a_view_goes_by_what_is_visible(self) -> None:
        array = self.array((5, 4), np.int16, feature_shape=(3,), padding=1, full_size=10)
        new = array[1:3].new_array()
        assert (new.batch_shape, new.feature_shape) == ((2, 4), (3,))
        assert (new.padding, new.full_size) == (0, 2)
        assert array[0, 0].new_array(batch_shape=(7,)).shape == (7, 3)
        if self.indexes_features:
            assert array[0, 0, 0].new_array(batch_shape=(7,)).shape == (7,)
        with pytest.raises(ValueError, match=r"batch_shape: got \(\)"):
            array[0, 0].new_array()

    # Rows

    def test_first_and_last_are_indices_of_the_visible_rows(self) -> None:
        array = self.counted(padding=1, full_size=10)
        self.assert_shows(array[array.first], [0, 1, 2, 3])
        self.assert_shows(array[array.last], [16, 17, 18, 19])
        assert (array[1:3].last, array.full.last, array[2].last) == (1, 9, 3)
        with pytest.raises(TypeError, match="without dimensions"):
            _ = array[0, 0].last

    def test_iteration_stops_at_the_last_row(self) -> None:
        array = self.counted(padding=2, full_size=10)
        assert [row[0].item() for row in array] == [0, 4, 8, 12, 16]
        for row in array[::-2]:
            row[...] = -1
        self.assert_shows(array[:, 0], [-1, 4, -1, 12, -1])
        assert len(list(array)) == len(array)
        with pytest.raises(TypeError, match="without dimensions"):
            iter(array[0, 0])

    # NumPy

    def test_to_ndarray_shares_memory_of_the_host_and_copies_other(self) -> None:
        array = self.counted(padding=1)
        for view in (array, array[1:3], array[:, ::-2], array[2, 1]):
            ndarray = view.to_ndarray()
            assert np.shares_memory(ndarray, array.to_ndarray()) is self.is_on_host
            assert ndarray.flags.writeable is self.is_on_host
        array[2, 1] = -1
        assert bool(ndarray == -1) is self.is_on_host

    def test_a_gathered_view_reads_as_a_read_only_copy(self) -> None:
        array = self.counted()
        for view in (array[[0, 1]], array[array.to_ndarray() > 3], array[0, [1, 2]]):
            ndarray = view.to_ndarray()
            with pytest.raises(ValueError, match="read-only"):
                ndarray[...] = 0
            assert not np.shares_memory(ndarray, array.to_ndarray())
            tensor = view.to_torch()
            tensor[...] = -1  # torch has no read-only tensors: this one is the reader's own
        self.assert_shows(array, np.arange(20).reshape(5, 4))

    def test_a_gathered_view_shows_what_was_written_since(self) -> None:
        array = self.counted()
        view = array[[0, 2], [1, 3]]
        array[...] = 5
        self.assert_shows(view, [5, 5])
        view[...] = [6, 7]
        assert (array[0, 1].item(), array[2, 3].item()) == (6, 7)
        self.assert_shows(view, [6, 7])

    def test_what_a_reader_does_to_its_ndarray_does_not_change_the_array(self) -> None:
        array = self.counted()
        for view, shape in ((array, (5, 4)), (array[1:3], (2, 4)), (array[2], (4,))):
            ndarray = view.to_ndarray()
            ndarray.setflags(write=False)
            assert view.to_ndarray().flags.writeable is self.is_on_host
            assert view.shape == view.to_ndarray().shape == shape
            view.to_torch()[...] = 7
            self.assert_shows(view, np.full(shape, 7))

    @pytest.mark.parametrize("dtype", [None, np.float32, np.float64])
    @pytest.mark.parametrize("is_gathered", [False, True])
    @pytest.mark.parametrize("copy", [None, False, True])
    def test_array_protocol_copies_as_numpy_2_says(
        self, copy: bool | None, is_gathered: bool, dtype: type | None
    ) -> None:
        array = self.counted()
        view = array[[0, 2]] if is_gathered else array[0:3:2]
        if not self.is_on_host:
            with pytest.raises(TypeError, match=r"not converted implicitly: to_ndarray\(\)"):
                np.array(view, dtype=dtype, copy=copy)
            return
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

    def test_numpy_functions_take_arrays_in_memory_of_the_host(self) -> None:
        array = self.counted()
        results: list[tuple[Callable[[], Any], Any]] = [
            (lambda: np.asarray(array, np.int64), np.arange(20).reshape(5, 4)),
            (lambda: np.mean(array), np.float32(9.5)),
            (lambda: np.stack([array[0], array[1]]), np.arange(8, dtype="f4").reshape(2, 4)),
            (lambda: array[1].to_ndarray() - array[0], np.full(4, 4, np.float32)),
        ]
        for function, expected in results:
            if self.is_on_host:
                assert_array_equal(function(), expected, strict=True)
            else:
                with pytest.raises(TypeError, match="not converted implicitly"):
                    function()

    # torch and DLPack

    def test_to_torch_shares_memory(self) -> None:
        array = self.counted(padding=1)
        tensor = array.to_torch()
        assert (str(tensor.dtype), tuple(tensor.shape)) == ("torch.float32", (5, 4))
        tensor[2, 1] = -1
        self.settle()
        assert array[2, 1].item() == -1
        array[1:3, ::2].to_torch()[...] = 7
        self.assert_shows(array[1:3], [[7, 5, 7, 7], [7, -1, 7, 11]])
        array[3].to_torch().fill_(4)
        array[3, 0].to_torch().fill_(5)
        self.assert_shows(array[3], [5, 4, 4, 4])

    def test_to_torch_shows_what_is_written_later(self) -> None:
        array = self.counted()
        tensor = array[1:3].to_torch()
        array[2] = 9
        assert_array_equal(values_of(tensor), [[4, 5, 6, 7], [9, 9, 9, 9]])

    def test_to_torch_says_what_torch_cannot_share(self) -> None:
        for view in (self.counted()[::-1], self.counted()[:, ::-2]):
            with pytest.raises(ValueError, match="positive step"):
                view.to_torch()
        if "M8[s]" in self.dtypes:
            with pytest.raises((TypeError, BufferError)):
                self.array((2,), "M8[s]").to_torch()

    def test_dlpack_goes_out_without_a_copy(self) -> None:
        array = self.counted(padding=1)
        consumers: list[Callable[[Any], Any]] = [np.from_dlpack] if self.is_on_host else []
        if not self.is_for_gpu:
            assert array.__dlpack_device__() == (1, 0)  # kDLCPU
        if not (self.is_for_gpu and self.is_on_host):
            consumers.append(from_dlpack)
        for consumer in consumers:
            for view in (array, array[1:3], array[:, 2], array[2, 2]):
                out = consumer(view)
                assert_array_equal(values_of(out), self.read(view))
                view[...] = -self.read(view)
                assert_array_equal(values_of(out), self.read(view))

    # Scalars and text

    def test_scalars_come_out_of_single_elements(self) -> None:
        array = self.counted(2, 2)
        one = array[1, 1]
        assert (one.item(), int(one), float(one), bool(one)) == (3.0, 3, 3.0, True)
        assert (type(one.item()), type(int(one)), type(float(one))) == (float, int, float)
        assert not array[0, 0]
        assert self.array((1,)).item() == 0
        with pytest.raises(ValueError, match="ambiguous"):
            bool(array)
        with pytest.raises(ValueError, match="size 1"):
            array.item()
        with pytest.raises(TypeError):
            float(array)

    def test_printing_shows_values_dtype_and_storage(self) -> None:
        array = self.array((2, 2), np.int32, padding=1, full_size=4)
        array[-1], array[2] = 8, 9
        end = f", dtype=int32, storage={self.storage!r})"
        assert repr(array) == str(array) == f"{array}" == f"Array([[0, 0],\n       [0, 0]]{end}"
        array[0, 1] = 5
        assert repr(array[0]) == f"Array([0, 5]{end}"
        assert repr(array[0, 1]) == f"Array(5{end}"
        assert repr(array[[1, 0], [0, 1]]) == f"Array([0, 5]{end}"
        assert "..." in repr(self.array((1000, 50)))
        array.close()
        assert repr(array) == "Array(closed, shape=(2, 2), dtype=int32)"
