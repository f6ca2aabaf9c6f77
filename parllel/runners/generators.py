"""GlobalGenerators: the random numbers of Python, NumPy and torch, as a part of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from parllel.generator_states import python_and_numpy_state, set_python_and_numpy_state


class GlobalGenerators:
    """The states of the generators that programs share: Python's, NumPy's old one, and torch's.

    >>> import random
    >>> generators = GlobalGenerators()
    >>> state = generators.state_dict()
    >>> first = random.random()
    >>> generators.load_state_dict(state)
    >>> random.random() == first
    True
    """

    def state_dict(self) -> dict[str, Any]:
        """Return all states. Those of GPUs are among them where torch has used one."""
        on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return {
            **python_and_numpy_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if on_gpu else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all states; those of GPUs where there are as many as were saved."""
        set_python_and_numpy_state(state)
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])


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
