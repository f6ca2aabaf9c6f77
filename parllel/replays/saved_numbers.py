"""Checks of what a saved replay buffer goes on from: numbers of the JSON, and tables of indices."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.kernels.sum_tree import FAN_OUT, ONE, find_limit, lay_out

_LARGEST = float(np.finfo(np.float32).max)  # kernels count in float32


def check_keys(where: str, found: object, expected: Collection[str]) -> None:
    """Raise ValueError unless a value of JSON has exactly some keys.

    Args:
        where: file and key, for the message.
        found: value that was read.
        expected: the keys.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{where}: got a {type(found).__name__}, expected keys {sorted(expected)}")
    if found.keys() != set(expected):
        raise ValueError(f"{where}: got keys {sorted(found)}, expected {sorted(expected)}")


def check_integer(where: str, found: object, least: int, most: int) -> None:
    """Raise ValueError unless a value of JSON is an integer of a range, ends included."""
    if type(found) is not int or not least <= found <= most:
        raise ValueError(
            f"{where}: got {_shown(found)}, expected an integer from {least} to {most}"
        )


def check_real(where: str, found: object) -> None:
    """Raise ValueError unless a value of JSON is a finite number of 0 or more."""
    if type(found) not in (int, float) or not 0 <= found <= _LARGEST:  # type: ignore[operator]
        raise ValueError(f"{where}: got {_shown(found)}, expected a finite number of 0 or more")


def check_range(where: str, numbers: NDArray[Any], least: int, most: int) -> None:
    """Raise ValueError unless all integers of an array lie in a range, ends included."""
    if numbers.size and (numbers.min() < least or numbers.max() > most):
        raise ValueError(
            f"{where}: got numbers from {numbers.min()} to {numbers.max()}, expected {least} to"
            f" {most}"
        )


def check_sums(where: str, sums: NDArray[np.int64], n_leaves: int) -> None:
    """Raise ValueError unless an array is a tree of sums (`kernels.sum_tree`).

    Args:
        where: the leaf, for the message.
        sums: int64 [n]; all levels, one behind the other.
        n_leaves: number of numbers that have a sum.
    """
    begins = lay_out(n_leaves)
    check_range(where, sums[:n_leaves], 0, find_most(n_leaves))
    check_range(where, sums[n_leaves : begins[1]], 0, 0)
    for level in range(1, len(begins) - 1):
        below, above = (sums[begins[k] : begins[k + 1]] for k in (level - 1, level))
        expected = below.reshape(-1, FAN_OUT).sum(1)
        if (above[: len(expected)] != expected).any() or above[len(expected) :].any():
            raise ValueError(f"{where}: numbers of level {level} are not the sums of those below")


def find_most(n_leaves: int) -> int:
    """Return the largest priority that a place can have, as an integer."""
    return max(ONE, int(find_limit(n_leaves)))


def _shown(found: object) -> str:
    return f"{found!r:.50}" if isinstance(found, int | float | str) else type(found).__name__
