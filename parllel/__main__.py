"""`python -m parllel`: say what this machine has, or compile the kernels ahead; no training."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

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
    print(compile_kernels() if command == "compile" else describe())


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


def compile_kernels() -> str:
    """Compile all kernels for the CPU that the disk cache does not hold; return what was done."""
    start = time.perf_counter()
    kernels = find_cpu_kernels()
    for kernel in kernels:
        _ = kernel.compiled
    return f"{len(kernels)} kernels are ready ({time.perf_counter() - start:.1f} s)"


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
