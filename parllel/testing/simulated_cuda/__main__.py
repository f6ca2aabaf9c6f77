"""`python -m parllel.testing.simulated_cuda` compiles ahead what tests on simulated CUDA run.

These are the kernels for the CPU, and those that a simulation runs in the place of launches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from parllel import __main__
from parllel.kernels.targets import find_entries
from parllel.testing.simulated_cuda.twins import compiled


def loads() -> list[Callable[[], Any]]:  # Any: Numba's dispatchers
    """Return a function for each kernel, as `parllel.__main__.compile_kernels` calls them."""
    return [*__main__.loads(), *(partial(compiled, entry) for entry in find_entries().values())]


if __name__ == "__main__":
    print(__main__.compile_kernels(f"{__package__}.__main__"))
