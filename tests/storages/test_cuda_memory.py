"""Memory that a GPU uses, kind by kind, against the contracts of all memory."""

import pytest

from parllel.testing.contracts.array_case import COMPUTABLE_DTYPES
from parllel.testing.contracts.array_contract import ArrayContract
from parllel.testing.contracts.array_law_contract import ArrayLawContract
from parllel.testing.contracts.storage_contract import StorageContract
from parllel.testing.contracts.tree_contract import TreeContract
from parllel.testing.contracts.tree_refusals_contract import TreeRefusalsContract
from profiles import count_examples

pytestmark = pytest.mark.usefixtures("cuda_device")


class TestLaws(ArrayLawContract, TreeRefusalsContract):
    storage = "device"
    n_examples = count_examples(10)


@pytest.mark.long
class TestPinned(StorageContract, ArrayContract, TreeContract):
    storage = "pinned"
    sends = "memory"
    n_examples = count_examples(10)


@pytest.mark.long
class TestManaged(StorageContract, ArrayContract, TreeContract):
    storage = "managed"
    sends = "nothing"
    n_examples = count_examples(10)


class TestDevice(StorageContract, ArrayContract, TreeContract):
    storage = "device"
    sends = "nothing"
    dtypes = COMPUTABLE_DTYPES
    n_examples = count_examples(10)
