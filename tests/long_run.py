"""Which cases of a test are for the long run alone, where each of them takes time; and its shares.

The short run keeps those that differ most from each other; the others are variants of them.
"""

import argparse
import re
import zlib
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


def share_of(text: str) -> tuple[int, int]:
    """Return the numbers K and N of a share "K/N", of which K is from 0 to N - 1.

    Raises:
        argparse.ArgumentTypeError: it is no such share.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    number, n_shares = map(int, found.groups()) if found else (0, 0)
    if not number < n_shares:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected K/N, as 0/2 or 1/2: K below N")
    return number, n_shares


def is_of_share(name: str, share: tuple[int, int]) -> bool:
    """Tell whether a test is one of a share K of N."""
    number, n_shares = share
    return zlib.crc32(name.encode()) % n_shares == number
