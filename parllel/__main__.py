"""`python -m parllel`: say what this machine has, or compile the kernels ahead; no training."""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from subprocess import DEVNULL, Popen
from typing import Any

from parllel import cuda
from parllel.kernels.targets import find_cpu_kernels
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
        choices=("describe", "compile"),
        default="describe",
        help="describe: say what this machine has. compile: compile the kernels for the CPU ahead,"
        " so that no program waits for them",
    )
    command = parser.parse_args(arguments).command
    print(compile_kernels(f"{__package__}.__main__") if command == "compile" else describe())


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


def compile_kernels(module: str) -> str:
    """Compile kernels for the CPU that the disk cache does not hold; return what was done.

    Once one is missing there, a second process goes through them too, from the last one to the
    first: where the two have met, each finds in the cache what the other one has compiled.

    Args:
        module: name of a module whose `loads()` returns a function for each kernel, which loads it
            from the disk cache or compiles it, and returns Numba's dispatcher.
    """
    start = time.perf_counter()
    functions = importlib.import_module(module).loads()
    backwards = f"import {module} as module; [load() for load in reversed(module.loads())]"
    with ExitStack() as stack:
        second = None
        for load in functions:
            is_missing = any(load().stats.cache_misses.values())
            if is_missing and second is None:
                command = [sys.executable, "-c", backwards]
                second = stack.enter_context(Popen(command, stderr=DEVNULL))  # this one tells it
    return f"{len(functions)} kernels are ready ({time.perf_counter() - start:.1f} s)"


def loads() -> list[Callable[[], Any]]:  # Any: Numba's dispatchers
    """Return a function for each of the package's kernels, as `compile_kernels` calls them."""
    return [partial(getattr, kernel, "compiled") for kernel in find_cpu_kernels()]


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
