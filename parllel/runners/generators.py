"""GlobalGenerators: the random numbers of Python, NumPy and torch, as a part of a run."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


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
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
        np.random.set_state(state["numpy"])  # noqa: NPY002  # others may use it
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
