"""Which cases of a test are for the long run alone, where each of them takes time.

The short run keeps those that differ most from each other; the others are variants of them.
"""

from collections.abc import Iterable
from typing import Any

import pytest


def all_but_first(cases: Iterable[Any], n_short: int = 1) -> list[Any]:
    """Mark all cases of a test but the first ones for the long run.

    Args:
        cases: values of an argument, or tuples of values of several ones.
        n_short: number of cases that the short run has, too.
    """
    return [case if number < n_short else marked(case) for number, case in enumerate(cases)]


def all_but(cases: Iterable[Any], short: Iterable[Any]) -> list[Any]:
    """Mark all cases of a test but some for the long run; these must be among them."""
    cases, short = list(cases), list(short)
    missing = [case for case in short if case not in cases]
    assert not missing, missing
    return [case if case in short else marked(case) for case in cases]


def marked(case: Any) -> Any:
    """Return a case that only the long run has."""
    values = case if isinstance(case, tuple) and not hasattr(case, "_fields") else (case,)
    return pytest.param(*values, marks=pytest.mark.long)
