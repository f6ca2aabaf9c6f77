"""The contracts of memory: they take storages from outside the package, and they find faults."""

import pickle
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import Phase, settings

from parllel import Array, ArrayDict
from parllel.arrays import location
from parllel.arrays.window import Window
from parllel.storages import KINDS, Local, Memory, host_memory
from parllel.testing.contracts import array_case
from parllel.testing.contracts.array_contract import ArrayContract
from parllel.testing.contracts.array_law_contract import ArrayLawContract
from parllel.testing.contracts.storage_contract import StorageContract
from parllel.testing.contracts.tree_contract import TreeContract

# A storage from outside the package


class InFile(Memory):
    """Memory mapped from a file that goes with it."""

    kind = "file"

    def __init__(self, nbytes: int) -> None:
        host_memory.check_available(self.kind, nbytes)
        with tempfile.TemporaryFile() as file:
            file.truncate(max(nbytes, 1))
            super().__init__(np.memmap(file, np.uint8, shape=(max(nbytes, 1),))[:nbytes])

    def __reduce__(self) -> Any:
        raise ValueError("memory in a file can't be sent to another process")


@pytest.mark.long
class TestInFile(StorageContract, ArrayContract, TreeContract):
    storage = "file"
    sends = "nothing"
    n_examples = 5

    @pytest.fixture(autouse=True)
    def _kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(KINDS, "file", InFile)


class Private(Local):
    kind = "private"


@pytest.mark.parametrize("view_of", [lambda array: array, lambda array: array[1:, 0]])
def test_values_that_were_sent_lie_in_memory_of_their_kind(
    view_of: Callable[[Array], Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    array = Array((3, 2), np.float32, storage=Private(1024))
    array[...] = np.arange(6).reshape(3, 2)
    data = pickle.dumps(view_of(array))
    unknown = pickle.loads(data)  # as in a process that does not know the kind
    monkeypatch.setitem(KINDS, "private", Private)
    known = pickle.loads(data)
    assert (unknown.storage, known.storage) == ("local", "private")
    for copied in (unknown, known):
        np.testing.assert_array_equal(copied.to_ndarray(), view_of(array).to_ndarray())


# How a test fails: by itself, by what the fault makes of an Array, or by several examples at once.
FOUND = (
    *(AssertionError, pytest.fail.Exception, ExceptionGroup),
    *(IndexError, ValueError, OverflowError),
)


# Faulty storages, and the test that finds each


class NotZeroed(Local):
    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        assert self._block is not None
        self._block[...] = 1


class NotAligned(Local):
    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes + 8)
        assert self._block is not None
        self._block = self._block[8:]
        self.nbytes = nbytes


class Overlapping(Local):
    def take(self, nbytes: int) -> int:
        super().take(nbytes)
        return 0


class Generous(Local):
    def take(self, nbytes: int) -> int:
        self._taken = 0
        return super().take(min(nbytes, self.nbytes))


class NeverClosed(Local):
    def _close(self) -> None:
        pass


class ClosedEarly(Local):
    def release(self) -> None:
        self._close()


class Kept(Local):
    kept: ClassVar[list[Memory]] = []

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self.kept.append(self)


class Unchecked(Local):
    def __init__(self, nbytes: int) -> None:
        Memory.__init__(self, np.zeros(nbytes, np.uint8))


class Misnamed(Local):
    kind = "loca"


FAULTS: list[tuple[type[Memory], Callable[..., None], tuple[Any, ...]]] = [
    (NotZeroed, StorageContract.test_a_block_is_zeroed_and_aligned, (256,)),
    (NotZeroed, ArrayContract.test_a_new_array_is_zero, ("i8",)),
    (NotZeroed, TreeContract.test_new_array_reaches_every_leaf, ()),
    (NotAligned, StorageContract.test_every_array_begins_at_a_multiple_of_256_bytes, ()),
    (Overlapping, StorageContract.test_arrays_in_one_block_do_not_overlap, ()),
    (Generous, StorageContract.test_a_block_that_is_used_up_raises_memory_error, ()),
    (NeverClosed, StorageContract.test_a_block_is_closed_with_the_last_of_its_arrays, ()),
    (ClosedEarly, StorageContract.test_a_block_is_closed_with_the_last_of_its_arrays, ()),
    (Kept, StorageContract.test_a_block_that_is_never_closed_goes_with_its_last_reference, ()),
    (Unchecked, StorageContract.test_an_absurd_size_is_a_memory_error, (200,)),
    (Misnamed, StorageContract.test_the_kind_goes_by_its_name, ()),
]


@pytest.mark.parametrize(("faulty", "test", "args"), FAULTS)
def test_a_faulty_storage_is_found(
    faulty: type[Memory],
    test: Callable[..., None],
    args: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Case(StorageContract, ArrayContract, TreeContract):
        """Each test sees memory of this kind alone."""

    test(Case(), *args)  # on right memory
    monkeypatch.setitem(KINDS, "local", faulty)
    with pytest.raises(FOUND):
        test(Case(), *args)


@pytest.mark.parametrize(("sends", "really"), [("values", "shared"), ("memory", "local")])
def test_memory_that_is_sent_otherwise_than_said_is_found(sends: Any, really: str) -> None:
    case = type("Case", (ArrayContract,), {"storage": really, "sends": sends})()
    with pytest.raises(AssertionError):
        case.test_a_pickle_carries_what_the_memory_sends()


# Faulty Arrays and trees


def forget_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Array.advance_window
    monkeypatch.setattr(Array, "advance_window", lambda array: advance(array)[:0])


def stay_when_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Window, "reset", lambda window: None)


def read_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Array._pick
    monkeypatch.setattr(Array, "_pick", lambda array, data: read(array, data)[..., ::-1])


def copy_when_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Array.to_ndarray
    monkeypatch.setattr(Array, "to_ndarray", lambda array: read(array).copy())


def step_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    shift = location.shift
    monkeypatch.setattr(
        "parllel.arrays.array.shift", lambda place, extents, by: shift(place, extents, 2 * by)
    )


def rotate_one_leaf_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def rotate(tree: ArrayDict) -> None:
        for _, leaf in list(tree.walk())[:-1]:
            leaf.rotate()

    monkeypatch.setattr(ArrayDict, "rotate", rotate)


def share_when_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Array, "__deepcopy__", lambda array, memo: array[...])


PLANTED: list[tuple[Callable[[pytest.MonkeyPatch], None], str, tuple[Any, ...]]] = [
    (forget_padding, "test_padding_before_the_window_is_the_end_of_the_batch_before", ()),
    (forget_padding, "test_rows_written_around_the_window_are_found_after_it_moved", ()),
    (forget_padding, "test_a_padding_as_large_as_the_batch_carries_the_whole_batch_over", ()),
    (stay_when_reset, "test_after_reset_the_next_rotate_lands_at_the_beginning", (1, 1)),
    (read_backwards, "test_a_chain_of_indices_leads_where_the_model_says", ()),
    (read_backwards, "test_a_write_changes_exactly_the_addressed_elements", ()),
    (read_backwards, "test_indexing_a_tree_is_indexing_its_leaves", ()),
    (copy_when_reading, "test_a_view_without_arrays_shares_memory_and_a_gathered_one_does_not", ()),
    (copy_when_reading, "test_to_ndarray_shares_memory_of_the_host_and_copies_other", ()),
    (step_too_far, "test_next_and_previous_are_one_row_away_or_outside", ()),
    (step_too_far, "test_next_is_written_in_place", ()),
    (rotate_one_leaf_less, "test_rotate_and_reset_reach_every_leaf", ()),
    (rotate_one_leaf_less, "test_a_tree_rotates_as_leaves_in_local_memory_do", ()),
    (share_when_copying, "test_a_copy_has_its_own_rows_padding_and_window", (1,)),
    (share_when_copying, "test_a_deep_copy_has_memory_of_its_own", ()),
]


@pytest.mark.parametrize(("plant", "test", "args"), PLANTED)
def test_a_planted_fault_is_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    test: str,
    args: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Case(ArrayLawContract, ArrayContract, TreeContract):
        n_examples = 15

    # What was found need not be made small, which takes long.
    monkeypatch.setattr(array_case, "settings", partial(settings, phases=[Phase.generate]))
    getattr(Case(), test)(*args)
    plant(monkeypatch)
    with pytest.raises(FOUND):
        getattr(Case(), test)(*args)
