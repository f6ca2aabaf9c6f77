"""ArrayContract: the tests that Arrays must pass in memory of every kind."""

from __future__ import annotations

from parllel.testing.contracts.array_life_contract import ArrayLifeContract
from parllel.testing.contracts.array_reading_contract import ArrayReadingContract
from parllel.testing.contracts.array_window_contract import ArrayWindowContract
from parllel.testing.contracts.array_writing_contract import ArrayWritingContract


class ArrayContract(
    ArrayWindowContract, ArrayReadingContract, ArrayWritingContract, ArrayLifeContract
):
    """The promises of an Array that depend on the memory it lives in.

    To test a storage of your own, enter it in `parllel.storages.KINDS`, subclass this contract
    (with `StorageContract` and `TreeContract`) in a test module, under a name that begins with
    `Test`, and set the attributes of `ArrayCase` where it differs from `local`. The tests need
    pytest and Hypothesis. Tests that involve no memory are those of `ArrayLawContract`.

    Example:
        >>> class TestShared(ArrayContract):
        ...     storage = "shared"
        ...     sends = "memory"
    """
