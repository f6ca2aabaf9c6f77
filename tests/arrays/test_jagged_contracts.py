"""JaggedArray against the contracts of all Arrays, in memory of each kind (`JaggedNumbers`)."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
from jagged_numbers import CAPACITY, NumbersSpec
from numpy.typing import DTypeLike

from parllel import Jagged
from parllel.testing.contracts.array_case import COMPUTABLE_DTYPES, ArrayCase
from parllel.testing.contracts.array_contract import ArrayContract
from parllel.testing.contracts.array_index_contract import ArrayIndexContract
from parllel.testing.contracts.array_law_contract import ArrayLawContract
from parllel.testing.contracts.array_life_contract import ArrayLifeContract
from parllel.testing.contracts.array_reading_contract import ArrayReadingContract
from parllel.testing.contracts.array_window_contract import ArrayWindowContract
from parllel.testing.contracts.array_writing_contract import ArrayWritingContract
from parllel.testing.contracts.tree_contract import TreeContract
from parllel.testing.contracts.tree_refusals_contract import TreeRefusalsContract
from profiles import count_examples

_Case = TypeVar("_Case", bound=type)

_ITEMS = "items of an element are not indexed (test_items_are_not_indexed)"
_WORDS = "a JaggedArray's errors name the element (test_an_element_that_does_not_fit_is_refused)"
_COPY = "JaggedNumbers reads copies; test_what_is_read_shares_memory holds what JaggedArray shares"
_FORM = "elements of different length are no single array (test_items_are_not_indexed)"
_CAST = "no cast changes an element (test_an_element_that_does_not_fit_is_refused)"

NOT_OF_JAGGED = {
    "test_next_keeps_an_integer_beside_arrays_joined_to_them": _ITEMS,
    "test_dimensions_of_arrays_on_features_are_no_batch_dimensions_at_the_front": _ITEMS,
    "test_an_integer_beside_an_array_on_features_makes_no_batch_dimension": _ITEMS,
    "test_a_value_of_a_wrong_shape_raises_an_error_with_both_shapes": _WORDS,
    "test_a_ragged_list_is_an_error_that_names_the_array": _WORDS,
    "test_errors_name_the_leaf": _WORDS,
    "test_printing_shows_values_dtype_and_storage": "a JaggedArray shows lengths and its capacity",
    "test_shapes_are_batch_and_features": "a JaggedArray's bytes are those of whole slots"
    " (test_memory_is_told_before_it_is_taken)",
    "test_a_value_is_cast_as_numpy_casts_it": _CAST,
    "test_a_scalar_is_written_into_every_leaf": _CAST,
    "test_a_view_without_arrays_shares_memory_and_a_gathered_one_does_not": _COPY,
    "test_what_was_taken_before_outlives_a_closed_array_that_is_dropped": _COPY,
    "test_to_ndarray_shares_memory_of_the_host_and_copies_other": _COPY,
    "test_what_a_reader_does_to_its_ndarray_does_not_change_the_array": _COPY,
    "test_to_torch_shares_memory": _COPY,
    "test_to_torch_shows_what_is_written_later": _COPY,
    "test_to_torch_says_what_torch_cannot_share": _COPY,
    "test_array_protocol_copies_as_numpy_2_says": _FORM,
    "test_dlpack_goes_out_without_a_copy": _FORM,
}
"""The tests of contracts that do not hold a JaggedArray, and why."""


def of_jagged(case: _Case) -> _Case:
    """Leave out of a class of tests what no JaggedArray is held to."""
    for name in NOT_OF_JAGGED:
        if hasattr(case, name):
            setattr(case, name, None)
    return case


class JaggedCase(ArrayCase):
    """Contracts make JaggedNumbers where they make Arrays."""

    indexes_features = False
    n_examples = count_examples(50)

    def spec(
        self, batch_shape: Sequence[int], dtype: DTypeLike = np.float32, **options: Any
    ) -> NumbersSpec:
        return NumbersSpec.of(batch_shape, dtype, capacity=CAPACITY, **options)


class JaggedContract(ArrayWindowContract, ArrayLifeContract):
    """What each kind of memory is held to; one of the host and one of a GPU are to more."""

    @pytest.mark.parametrize("index", [..., 1, (1, 2), slice(1, 3), (slice(None), 1)])
    def test_what_is_read_shares_memory(self, index: Any) -> None:
        array = self.counted().bare
        view = array[index]
        found = values_of(view.to_ndarray())
        assert found.flags.writeable is self.is_on_host
        values = array.memory_parts["values"]
        if self.is_on_host:
            assert np.shares_memory(found, values)
        tensor = values_of(view.to_torch())
        tensor[...] = -1
        self.settle()
        seen = values_of(view.to_ndarray())
        assert seen.size
        assert (seen == -1).all()
        array.close()
        tensor[...] = 0  # what was read stays valid

    @pytest.mark.parametrize("index", [[0, 2], slice(None, None, -1), ([4, 1], [0, 1])])
    def test_what_is_gathered_is_a_read_only_copy(self, index: Any) -> None:
        array = self.counted().bare
        view = array[index]
        found = view.to_ndarray()
        assert isinstance(found, Jagged)
        with pytest.raises(ValueError, match="read-only"):
            found.values[...] = 0
        values_of(view.to_torch())[...] = -1  # torch has no read-only tensors
        self.assert_shows(self.counted(), np.arange(20).reshape(5, 4))
        assert not (values_of(view.to_ndarray()) == -1).any()


def values_of(found: Any) -> Any:
    """Return all values that were read, of one element or of several."""
    return found.values if isinstance(found, Jagged) else found


@of_jagged
class TestLaws(JaggedCase, ArrayLawContract, TreeRefusalsContract):
    pass


@of_jagged
class TestLocal(JaggedCase, JaggedContract, ArrayReadingContract, ArrayWritingContract):
    pass


@pytest.mark.long
@of_jagged
class TestTreesInSharedMemory(JaggedCase, TreeContract):
    storage = "shared"
    sends = "memory"


@pytest.mark.long
@of_jagged
class TestShared(JaggedCase, JaggedContract):
    storage = "shared"
    sends = "memory"


@pytest.mark.long
@of_jagged
class TestInherited(JaggedCase, JaggedContract):
    storage = "inherited"
    sends = "memory"


@pytest.mark.long
@pytest.mark.usefixtures("cuda_device")
@of_jagged
class TestPinned(JaggedCase, JaggedContract):
    storage = "pinned"
    sends = "memory"


@pytest.mark.long
@pytest.mark.usefixtures("cuda_device")
@of_jagged
class TestManaged(JaggedCase, JaggedContract):
    storage = "managed"
    sends = "nothing"


@pytest.mark.long
@pytest.mark.usefixtures("cuda_device")
@of_jagged
class TestDevice(
    JaggedCase, JaggedContract, ArrayReadingContract, ArrayWritingContract, TreeContract
):
    storage = "device"
    sends = "nothing"
    dtypes = COMPUTABLE_DTYPES


@pytest.mark.long
@pytest.mark.usefixtures("cuda_device")
@of_jagged
class TestIndicesOnTheDevice(JaggedCase, ArrayIndexContract):
    storage = "device"


def test_only_tests_of_contracts_are_left_out() -> None:
    contracts = ArrayContract, ArrayLawContract, TreeContract, TreeRefusalsContract
    for name in NOT_OF_JAGGED:
        assert any(hasattr(contract, name) for contract in contracts), name
