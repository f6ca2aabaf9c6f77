"""ArrayLawContract: the tests of Arrays that involve no memory of their own."""

from __future__ import annotations

from parllel.testing.contracts.array_index_contract import ArrayIndexContract
from parllel.testing.contracts.array_index_rules_contract import ArrayIndexRulesContract
from parllel.testing.contracts.array_refusals_contract import ArrayRefusalsContract


class ArrayLawContract(ArrayIndexContract, ArrayIndexRulesContract, ArrayRefusalsContract):
    """The law of indices, and the uses that are refused.

    One kind of memory of the host and one of the device stand for all others: an index is worked
    out on the host, and then NumPy or CuPy takes the same strides, whatever memory is behind them.

    Example:
        >>> class TestLawsOnTheDevice(ArrayLawContract):
        ...     storage = "device"
    """
