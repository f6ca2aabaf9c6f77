"""GlobalGenerators: the random numbers of Python, NumPy and torch, as a part of a run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from parllel.generator_states import (
    python_and_numpy_state,
    set_generator_state,
    set_python_and_numpy_state,
)


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
def unchanged_generators(agent: object = None) -> Iterator[None]:
    """Put the global generators, and an agent's own, back to where they were before a block.

    So what is played in between, for an evaluation or a video, takes no random numbers away from
    training.

    Args:
        agent: an object whose attribute `generator`, if it has one, is a generator of torch, NumPy
            or Python; None for none.

    >>> with unchanged_generators():
    ...     first = torch.rand(1)
    >>> torch.equal(torch.rand(1), first)
    True
    """
    generators, own = GlobalGenerators(), getattr(agent, "generator", None)
    before, put_back = generators.state_dict(), _keep(own)
    try:
        yield
    finally:
        generators.load_state_dict(before)
        put_back()


def _keep(generator: object) -> Callable[[], object]:
    """Return a function that sets a generator to the state that it has now."""
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.Generator):
        return partial(set_generator_state, generator, generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return partial(set_generator_state, generator, generator.get_state(legacy=False))
    return lambda: None
