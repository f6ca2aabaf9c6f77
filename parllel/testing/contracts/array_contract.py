"""ArrayContract: the tests that Arrays must pass in memory of every kind."""

from __future__ import annotations

from parllel.testing.contracts.array_index_contract import ArrayIndexContract
from parllel.testing.contracts.array_index_rules_contract import ArrayIndexRulesContract
from parllel.testing.contracts.array_life_contract import ArrayLifeContract
from parllel.testing.contracts.array_reading_contract import ArrayReadingContract
from parllel.testing.contracts.array_window_contract import ArrayWindowContract
from parllel.testing.contracts.array_writing_contract import ArrayWritingContract


class ArrayContract(
    ArrayIndexContract,
    ArrayIndexRulesContract,
    ArrayWindowContract,
    ArrayReadingContract,
    ArrayWritingContract,
    ArrayLifeContract,
):
    """What an Array promises, whatever memory it lives in.

    To test a storage of your own, enter it in `parllel.storages.KINDS`, subclass this contract
    (with `StorageContract` and `TreeContract`) in a test module, under a name that begins with
    `Test`, and set the attributes of `ArrayCase` where it differs from `local`. The tests need
    pytest and Hypothesis.
    """
