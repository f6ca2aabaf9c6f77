"""GlobalGenerators: the random numbers of Python, NumPy and torch, as a part of a run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_N_WORDS = 624  # of the state of MT19937


class GlobalGenerators:
    """The states of the generators that programs share: Python's, NumPy's old one, and torch's.

    >>> generators = GlobalGenerators()
    >>> state = generators.state_dict()
    >>> first = random.random()
    >>> generators.load_state_dict(state)
    >>> random.random() == first
    True
    """

    def state_dict(self) -> dict[str, Any]:
        """Return all states. Those of GPUs are among them where torch has used one."""
        version, words, gauss = random.getstate()
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  # others may use it
        on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return {
            "python": [version, np.array(words, np.int64), gauss],
            "numpy": numpy_state,
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if on_gpu else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all states; those of GPUs where there are as many as were saved."""
        check_position(state["numpy"])
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
        np.random.set_state(state["numpy"])  # noqa: NPY002  # others may use it
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])


def check_position(state: Mapping[str, Any]) -> None:
    """Refuse a state of NumPy's MT19937 that points out of its words: it would read other memory.

    Raises:
        ValueError: it does.
    """
    inner = state.get("state")
    position = inner.get("pos", 0) if isinstance(inner, Mapping) else 0
    if not 0 <= position <= _N_WORDS:
        raise ValueError(f"generator: position {position}, expected 0 to {_N_WORDS}")


@contextmanager
def unchanged_generators(own: object = None) -> Iterator[None]:
    """Put the global generators, and a torch.Generator, back to where they were before a block.

    >>> with unchanged_generators():
    ...     first = torch.rand(1)
    >>> torch.equal(torch.rand(1), first)
    True
    """
    generators = GlobalGenerators()
    before = generators.state_dict()
    state = own.get_state() if isinstance(own, torch.Generator) else None
    try:
        yield
    finally:
        generators.load_state_dict(before)
        if isinstance(own, torch.Generator) and state is not None:
            own.set_state(state)
