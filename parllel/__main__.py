"""`python -m parllel`: say what this machine has, or compile the kernels ahead; no training."""

from __future__ import annotations

import argparse
import functools
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from subprocess import DEVNULL, Popen
from typing import Any

from parllel import cuda
from parllel.kernels.targets import find_cpu_kernels, find_entries
from parllel.storages import KINDS, default_storage

PACKAGES = ("parllel", "numpy", "numba", "gymnasium", "torch")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print versions, devices and storages; or, as `compile`, compile the kernels for the CPU.

    Args:
        arguments: words of the command line, those of this process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m parllel", description=describe.__doc__)
    parser.add_argument(
        "command",
        nargs="?",
        choices=("describe", "compile", "compile-all"),
        default="describe",
        help="describe: say what this machine has. compile: compile the kernels for the CPU ahead,"
        " so that no program waits for them. compile-all: those of simulated CUDA, too",
    )
    command = parser.parse_args(arguments).command
    is_all = command == "compile-all"
    print(compile_kernels(with_simulation=is_all) if command != "describe" else describe())


def describe() -> str:
    """Return the versions, the devices and the kinds of memory that this machine has, as text."""
    versions = (f"{name} {_version_of(name)}" for name in PACKAGES)
    return "\n".join(
        (
            f"Python {platform.python_version()}, {', '.join(versions)}",
            cuda.describe(),
            *_storages(),
        )
    )


def compile_kernels(*, with_simulation: bool = False) -> str:
    """Compile all kernels for the CPU that the disk cache does not hold; return what was done.

    Once one is missing there, a second process goes through them too, from the last one to the
    first: where the two have met, each finds in the cache what the other one has compiled.

    Args:
        with_simulation: whether to compile what simulated CUDA runs in the place of launches, too.
    """
    start = time.perf_counter()
    loads = _loads(with_simulation)
    backwards = f"from {__package__} import __main__; __main__.load_backwards({with_simulation})"
    with ExitStack() as stack:
        second = None
        for load in loads:
            is_missing = any(load().stats.cache_misses.values())
            if is_missing and second is None:
                command = [sys.executable, "-c", backwards]
                second = stack.enter_context(Popen(command, stderr=DEVNULL))  # this one tells it
    return f"{len(loads)} kernels are ready ({time.perf_counter() - start:.1f} s)"


def load_backwards(with_simulation: bool) -> None:
    """Compile all kernels that the disk cache does not hold, the last one first."""
    for load in reversed(_loads(with_simulation)):
        load()


def _loads(with_simulation: bool) -> list[Callable[[], Any]]:  # Any: Numba's dispatchers
    """Return a function for each kernel that loads it from the disk cache, or compiles it."""
    loads: list[Callable[[], Any]]
    loads = [functools.partial(getattr, kernel, "compiled") for kernel in find_cpu_kernels()]
    if with_simulation:
        from parllel.testing.simulated_cuda.twins import compiled

        loads += [functools.partial(compiled, entry) for entry in find_entries().values()]
    return loads


def _storages() -> Iterator[str]:
    reason = cuda.why_unavailable()
    names = (f"{kind} (the default)" if kind == default_storage() else kind for kind in KINDS)
    by_need: dict[bool, list[str]] = {True: [], False: []}
    for name, kind in zip(names, KINDS.values(), strict=True):
        by_need[kind.is_for_gpu and reason is not None].append(name)
    yield f"storages: {', '.join(by_need[False])}"
    if by_need[True]:
        yield f"not available: {', '.join(by_need[True])}, because {reason}"


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


if __name__ == "__main__":
    main()
