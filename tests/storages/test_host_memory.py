"""Memory of the host, kind by kind, against the contracts of all memory."""

import pytest

from parllel.testing.contracts.array_contract import ArrayContract
from parllel.testing.contracts.array_law_contract import ArrayLawContract
from parllel.testing.contracts.storage_contract import StorageContract
from parllel.testing.contracts.tree_contract import TreeContract
from parllel.testing.contracts.tree_refusals_contract import TreeRefusalsContract
from profiles import count_examples


class TestLaws(ArrayLawContract, TreeRefusalsContract):
    n_examples = count_examples()


class TestLocal(StorageContract, ArrayContract):
    n_examples = count_examples()


class TestTreesInLocalMemory(TreeContract):
    n_examples = count_examples(3)


class TestShared(StorageContract, ArrayContract, TreeContract):
    storage = "shared"
    sends = "memory"
    n_examples = count_examples(5)


@pytest.mark.long
class TestInherited(StorageContract, ArrayContract, TreeContract):
    storage = "inherited"
    sends = "memory"
    n_examples = count_examples(5)
