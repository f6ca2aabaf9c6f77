"""The stand-ins for CuPy's kernels: a launch runs a twin, on the host, when its turn comes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parllel.testing.simulated_cuda.active import Launch, current_stream, machine
from parllel.testing.simulated_cuda.allocators import MemoryPointer
from parllel.testing.simulated_cuda.array import ndarray
from parllel.testing.simulated_cuda.errors import NotImitatedError, SimulationError
from parllel.testing.simulated_cuda.host_values import Check
from parllel.testing.simulated_cuda.runtime_errors import INVALID_HANDLE, CUDARuntimeError
from parllel.testing.simulated_cuda.streams import is_capturing

# What every device since compute capability 3.0 allows.
_GRID_LIMIT = (2**31 - 1, 65535, 65535)
_BLOCK_LIMIT = (1024, 1024, 64)
_THREADS_LIMIT = 1024

_ENTRY = r"\.entry\s+{name}\s*\((?P<parameters>[^)]*)\)"
_PARAMETER = re.compile(r"\.param\s+\.(?P<kind>[a-z])(?P<bits>\d+)")


class RawModule:
    """Stands in for cupy.RawModule of a PTX file.

    Args:
        path: path of the file. A launch's arguments are held against the entry's parameters in it,
            where the file is there and has the entry.
    """

    def __init__(self, *, code: str | None = None, path: str | None = None) -> None:
        if path is None or code is not None:
            raise NotImitatedError("only a module of a PTX file is imitated")
        self.file_path = path

    def get_function(self, name: str) -> RawKernel:
        """Return a kernel. CuPy loads the module for it at once."""
        if name not in machine().kernels:
            raise SimulationError(
                f"{name}: no twin to run; give it to simulated_cuda(kernels=...), which has"
                f" {sorted(machine().kernels)}"
            )
        file = Path(self.file_path)
        return RawKernel(name, _parameters(file.read_text(), name) if file.exists() else None)


class RawKernel:
    """Stands in for cupy.RawKernel.

    Args:
        name: name of the kernel and of its twin.
        parameters: kind and bytes of each parameter, where they are known.
    """

    def __init__(self, name: str, parameters: Sequence[tuple[str, int]] | None = None) -> None:
        self.name = name
        self._parameters = parameters

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        *,
        shared_mem: int = 0,
    ) -> None:
        """Queue the twin in the current stream."""
        twin = machine().kernels[self.name]
        _check_size(f"{self.name}: grid", grid, _GRID_LIMIT)
        _check_size(f"{self.name}: block", block, _BLOCK_LIMIT)
        if math.prod(block) > _THREADS_LIMIT:
            raise SimulationError(f"{self.name}: block {block}, expected {_THREADS_LIMIT} threads")
        self._check_types(args)
        arguments, checks = [_argument(each) for each in args], _checks(args)
        stream, engine = current_stream(), machine().engine
        number = engine.stream_at(stream).device
        if number != engine.thread.device:
            raise CUDARuntimeError(INVALID_HANDLE)
        if not is_capturing(stream):
            engine.counters.launches += 1
            machine().launches.append(Launch(self.name, grid, block, stream, number))
        run = functools.partial(twin, grid, block, *arguments)
        engine.queue(stream, f"kernel {self.name} {grid} {block}", run, checks=checks)

    def _check_types(self, args: tuple[Any, ...]) -> None:
        if self._parameters is None:
            return
        given = [_kind(argument) for argument in args]
        if len(given) != len(self._parameters):
            raise SimulationError(
                f"{self.name}: got {len(given)} arguments, expected {len(self._parameters)}"
            )
        for number, (got, expected) in enumerate(zip(given, self._parameters, strict=True)):
            if got != expected:
                raise SimulationError(
                    f"{self.name}: argument {number} is {_text(got)}, expected {_text(expected)}"
                )


def _parameters(ptx: str, name: str) -> list[tuple[str, int]] | None:
    """Return kind ("f" for floats, "i" for all else) and bytes of an entry's parameters."""
    entry = re.search(_ENTRY.format(name=re.escape(name)), ptx)
    if entry is None:
        return None
    found = _PARAMETER.finditer(entry["parameters"])
    return [("f" if each["kind"] == "f" else "i", int(each["bits"]) // 8) for each in found]


def _kind(argument: object) -> tuple[str, int]:
    if isinstance(argument, ndarray | MemoryPointer):
        return "i", 8
    if isinstance(argument, np.generic):
        return "f" if argument.dtype.kind == "f" else "i", argument.itemsize
    raise TypeError(f"Unsupported type {type(argument)}")  # CuPy takes more, and guesses the type


def _text(parameter: tuple[str, int]) -> str:
    kind, nbytes = parameter
    return f"a {'float' if kind == 'f' else 'integer or address'} of {nbytes} bytes"


def _argument(argument: object) -> Any:
    """Return what the twin gets: NumPy's view of an array, an address for a pointer."""
    if isinstance(argument, ndarray):
        return argument._values
    return np.int64(argument.ptr) if isinstance(argument, MemoryPointer) else argument


def _checks(args: Sequence[Any]) -> list[Check]:
    """Return the checks of all memory that is named: arrays, pointers, and addresses."""
    checks: list[Check] = []
    for argument in args:
        if isinstance(argument, ndarray):
            checks += argument._checks
        elif isinstance(argument, MemoryPointer):
            checks.append(argument.mem._region.check)
        elif isinstance(argument, np.int64 | np.uint64):
            region = machine().memory.find(int(argument))
            if region is not None:
                checks.append(region.check)
    return checks


def _check_size(what: str, size: tuple[int, ...], limit: tuple[int, ...]) -> None:
    is_right = isinstance(size, tuple) and 1 <= len(size) <= 3
    if not is_right or not all(0 < n <= most for n, most in zip(size, limit, strict=False)):
        raise SimulationError(f"{what} {size!r}, expected a tuple of 1 to 3 numbers up to {limit}")
