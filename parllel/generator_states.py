"""States of generators of random numbers of Python and NumPy: read, and set after a check."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

_N_WORDS = 624  # of the state of MT19937


def python_and_numpy_state() -> dict[str, Any]:
    """Return the states of Python's global generator and of NumPy's old one, as plain data.

    >>> state = python_and_numpy_state()
    >>> first = random.random()
    >>> set_python_and_numpy_state(state)
    >>> random.random() == first
    True
    """
    version, words, gauss = random.getstate()
    return {
        "python": [version, np.array(words, np.int64), gauss],
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  # others may use it
    }


def set_python_and_numpy_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to what `python_and_numpy_state` returned.

    Raises:
        KeyError, TypeError, ValueError: it is no such state.
    """
    _check_position(state["numpy"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    np.random.set_state(state["numpy"])  # noqa: NPY002  # others may use it


def set_generator_state(
    generator: np.random.Generator | np.random.RandomState, state: Mapping[str, Any]
) -> None:
    """Set the state of a generator of NumPy: that of its bit generator, as a dictionary.

    Raises:
        KeyError, TypeError, ValueError: the state is another kind's, or points out of its words.
    """
    _check_position(state)
    if isinstance(generator, np.random.RandomState):
        generator.set_state(dict(state))
    else:
        generator.bit_generator.state = state


def _check_position(state: Mapping[str, Any]) -> None:
    """Refuse a state of MT19937 that points out of its words: NumPy would read other memory."""
    inner = state.get("state")
    position = inner.get("pos", 0) if isinstance(inner, Mapping) else 0
    if not 0 <= position <= _N_WORDS:
        raise ValueError(f"generator: position {position}, expected 0 to {_N_WORDS}")
