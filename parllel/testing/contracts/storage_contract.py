"""StorageContract: the tests that blocks of memory of every kind must pass."""

from __future__ import annotations

import pickle
import weakref
from typing import Any

import numpy as np
import pytest

from parllel.arrays import Array
from parllel.storages import KINDS, Memory, aligned, allocate
from parllel.testing.contracts.array_case import ArrayCase, clone


class StorageContract(ArrayCase):
    """The promises of a block of memory to the Arrays that lie in it.

    To test a storage of your own, see `ArrayContract`.
    """

    def address(self, array: Array) -> int:
        """Return where an Array's first element lies, as the host or the device calls it."""
        if self.is_on_host:
            return array.to_ndarray().ctypes.data
        address: int = array.to_cupy().data.ptr
        return address

    def counted_in(self, block: Memory, **options: Any) -> Array:
        """Return an int32 Array [5, 4] in a block, of which each element is its place."""
        array = Array((5, 4), np.int32, storage=block, **options)
        array[...] = np.arange(20).reshape(5, 4)
        return array

    def test_the_kind_goes_by_its_name(self) -> None:
        assert self.storage in KINDS
        assert allocate(self.storage, 1).kind == self.storage

    def test_the_side_that_works_on_the_rows_can_use_the_memory(self) -> None:
        block = allocate(self.storage, 1)
        can_use = {"host": block.is_on_host, "gpu": block.is_for_gpu}
        assert can_use[block.side]

    @pytest.mark.parametrize("nbytes", [0, 1, 255, 256, 257, 4096, 100_000, 5_000_001])
    def test_a_block_is_zeroed_and_aligned(self, nbytes: int) -> None:
        block = allocate(self.storage, nbytes)
        array = Array((nbytes,), np.uint8, storage=block)
        assert (array.shape, array.storage) == ((nbytes,), self.storage)
        assert block.nbytes == nbytes or not nbytes
        assert self.address(array) % 256 == 0 or not nbytes
        assert not self.read(array).any()
        array[...] = 7
        assert (self.read(array) == 7).all()

    def test_a_block_is_zeroed_after_another_one_was_written_and_freed(self) -> None:
        for _ in range(5):
            with self.array((1000,), np.int64) as array:
                assert not self.read(array).any()
                array[...] = -1

    def test_every_array_begins_at_a_multiple_of_256_bytes(self) -> None:
        shapes = [(3,), (257,), (0, 4), (64, 4), (1, 1)]
        block = allocate(self.storage, sum(aligned(int(np.prod(shape))) for shape in shapes))
        arrays = [Array(shape, np.uint8, storage=block) for shape in shapes]
        for array in arrays:
            assert self.address(array) % 256 == 0 or not array.size

    def test_arrays_in_one_block_do_not_overlap(self) -> None:
        block = allocate(self.storage, 4 * 1024)
        arrays = [self.counted_in(block, padding=1) for _ in range(4)]
        for value, array in enumerate(arrays):
            array[-1:6] = value
        for value, array in enumerate(arrays):
            assert array.storage == self.storage
            self.assert_shows(array[-1:6], np.full((7, 4), value))

    def test_a_block_knows_where_arrays_of_the_host_lie(self) -> None:
        if not self.is_on_host:
            pytest.skip("its arrays are none of the host")
        block, other = (allocate(self.storage, 1024) for _ in range(2))
        first, second = (Array((64,), np.float32, storage=block) for _ in range(2))
        outside = Array((64,), np.float32, storage=other)
        found = [block.offset_of(self.read(part)) for part in (first, second, second[3:])]
        assert found == [0, 256, 268]
        assert block.offset_of(self.read(outside)) is None

    def test_a_block_that_is_used_up_raises_memory_error(self) -> None:
        block = allocate(self.storage, 1024)
        first = Array((200,), np.float32, storage=block)
        wanted = f"{self.storage} memory: 400 bytes wanted, 0 of 1,024 left"
        with pytest.raises(MemoryError, match=wanted):
            Array((100,), np.float32, storage=block)
        first[...] = 1  # nothing happened to it
        half = allocate(self.storage, 1024)
        kept = [Array((65,), np.float32, storage=half)]
        with pytest.raises(MemoryError, match="516 bytes wanted, 512 of 1,024 left"):
            Array((129,), np.float32, storage=half)
        kept.append(Array((128,), np.float32, storage=half))  # what fits still fits

    @pytest.mark.parametrize("exponent", [50, 61, 70, 200])
    def test_an_absurd_size_is_a_memory_error(self, exponent: int) -> None:
        wanted = f"{self.storage} memory: {2**exponent * 4:,} bytes wanted"
        with pytest.raises(MemoryError, match=wanted):
            self.array((2 ** (exponent - 10), 2**10))

    def test_a_dtype_that_is_refused_takes_nothing_of_the_block(self) -> None:
        block = allocate(self.storage, 256)
        for dtype in {"M8[s]", "S3", ">i4"} - set(self.dtypes):
            with pytest.raises(TypeError, match="dtype: got"):
                Array((4,), dtype, storage=block)
        self.assert_shows(Array((64,), np.float32, storage=block), np.zeros(64))

    # The end

    def test_a_block_is_closed_with_the_last_of_its_arrays(self) -> None:
        block = allocate(self.storage, 4 * 1024)
        arrays = [self.counted_in(block) for _ in range(3)]
        view = arrays[2][1]
        arrays[0].close()
        arrays[0].close()  # counts once
        view.close()  # counts for nothing
        arrays[1].close()
        is_kept = not block.is_closed
        assert is_kept
        self.assert_shows(arrays[2], np.arange(20).reshape(5, 4))
        arrays[2].close()
        assert block.is_closed
        with pytest.raises(ValueError, match=f"{self.storage} memory: it is closed"):
            Array((1,), np.float32, storage=block)

    def test_a_block_that_is_never_closed_goes_with_its_last_reference(self) -> None:
        block = allocate(self.storage, 4 * 1024)
        array, gone = self.counted_in(block), weakref.ref(block)
        view = array[1]
        del array, block
        self.assert_shows(view, [4, 5, 6, 7])  # the view still needs it
        assert gone() is not None
        del view
        is_gone = gone() is None
        assert is_gone

    # Sending

    def test_a_block_is_sent_as_its_arrays_are(self) -> None:
        block = allocate(self.storage, 4 * 1024)
        array = self.counted_in(block)
        if self.sends == "values":
            assert clone(block) is not block
            return
        if self.sends == "nothing":
            with pytest.raises(ValueError, match="can't be sent to another process"):
                pickle.dumps(block)
            return
        beside = Array((2,), np.float32, storage=clone(block))
        beside[...] = 7  # what was taken stays taken
        self.assert_shows(array, np.arange(20).reshape(5, 4))
        array.close()
        beside.close()
        with pytest.raises(ValueError, match=f"{self.storage} memory: it is closed"):
            pickle.dumps(block)
