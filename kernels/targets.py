"""Turn kernel bodies, plain Python functions, into compiled code. It holds no body itself.

A body works on pointers and scalars, so that any target can compile it. It takes them from
`pointer_to`, or addresses with the functions of `addresses`, and knows no target. Its types are
`numpy.float32` and the like: Python's own numbers would make float64 of float32. A kernel consists
of an entry for each target, and of parts: functions which an entry and later parts call by name,
and which are inlined, as a GPU target demands. `twin` compiles for the CPU, `ptx` for GPUs.
"""

import functools
import importlib
import itertools
import pkgutil
import threading
import time
import types
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from parllel.kernels.addresses import memory_intrinsics, scalar_intrinsics
from parllel.kernels.instructions import instruction_intrinsics
from parllel.kernels.words import word_intrinsics

if TYPE_CHECKING:
    from numba.core.compiler import Compiler

_Kind = TypeVar("_Kind")
_Result = TypeVar("_Result")

# Modules of this folder that import a compiler, and hold no kernel.
_OF_COMPILERS = {"code_cache", "ptx"}


def pointer_to(array: npt.NDArray[Any]) -> npt.NDArray[Any]:  # Any: of every dtype
    """Return a C-contiguous array's elements, counted from 0 in memory order.

    Compiled, it is the bare address of the first element and indexing is not checked. As plain
    Python it is a flat view. A bool is read as uint8: Numba's pointers cannot load a bool.
    """
    flat = array.reshape(-1)
    return flat.view(np.uint8) if array.dtype == np.bool_ else flat


class Axes(NamedTuple):
    """A position in a grid or in a block, or the size of one."""

    x: int
    y: int


class ThreadPosition(NamedTuple):
    """Where a thread of a GPU is, by CUDA's own names."""

    gridDim: Axes  # noqa: N815
    blockIdx: Axes  # noqa: N815
    blockDim: Axes  # noqa: N815
    threadIdx: Axes  # noqa: N815


# An entry for GPUs asks this name for its position; in plain Python it is a grid's only thread.
cuda = ThreadPosition(
    gridDim=Axes(1, 1), blockIdx=Axes(0, 0), blockDim=Axes(1, 1), threadIdx=Axes(0, 0)
)


class DeviceEntry(NamedTuple):
    """A kernel's entry for GPUs, with all that is needed to compile and to simulate it.

    It spreads a body over the grid, and is small: only the body is run by the twin, too. A module
    of this folder that has one as a global name has a kernel: `find_entries` needs no list.

    Args:
        name: name of the entry in the PTX module, by which it is launched.
        entry: a plain function.
        signature: in Numba's notation; pointers are `CPointer(float32)` and the like, and an
            address is an int64.
        parts: functions that the entry uses by name, each after the parts that it uses itself.
    """

    name: str
    entry: Callable[..., None]
    signature: str
    parts: Sequence[Callable[..., Any]]  # Any: as in twin


class CpuKernel(Generic[_Result]):
    """A kernel for the CPU, compiled when it is first used.

    A module of this folder that has one as a global name has a kernel: `find_cpu_kernels` needs no
    list.

    Args:
        entry, signature, parts, outputs_are_apart: as `twin` takes them.
    """

    def __init__(
        self,
        entry: Callable[..., _Result],
        signature: str,
        *,
        parts: Sequence[Callable[..., Any]] = (),  # Any: as in twin
        outputs_are_apart: bool = False,
    ) -> None:
        self.entry = entry
        self._signature = signature
        self._parts = parts
        self._outputs_are_apart = outputs_are_apart

    @functools.cached_property
    def compiled(self) -> Callable[..., _Result]:
        """The kernel's `twin`, which the first use compiles, or loads from the disk cache."""
        return twin(
            self.entry,
            self._signature,
            parts=self._parts,
            outputs_are_apart=self._outputs_are_apart,
        )


@functools.cache
def find_entries() -> Mapping[str, DeviceEntry]:
    """Return all kernels for GPUs by their names: those of every module of this package.

    Raises:
        ValueError: two kernels have the same name.
    """
    entries: dict[str, DeviceEntry] = {}
    for kernel in _find(DeviceEntry):
        if entries.setdefault(kernel.name, kernel) != kernel:
            raise ValueError(f"{kernel.name}: two kernels have this name, expected one")
    return dict(sorted(entries.items()))


def find_cpu_kernels() -> list[CpuKernel[Any]]:  # Any: each has its own result
    """Return all kernels for the CPU: those of every module of this package. Compiles none."""
    return list(_find(CpuKernel))


def _find(kind: type[_Kind]) -> Iterator[_Kind]:
    """Yield each object of a kind that a module of this package has as a global name, once."""
    found: list[_Kind] = []
    package = importlib.import_module(__package__)
    for module in sorted(each.name for each in pkgutil.iter_modules(package.__path__)):
        if module not in _OF_COMPILERS:
            values = vars(importlib.import_module(f"{__package__}.{module}")).values()
            found += [value for value in values if isinstance(value, kind)]
    yield from {id(value): value for value in found}.values()


def launch_plainly(
    kernel: DeviceEntry,
    arguments: Sequence[object],
    *,
    grid: Axes,
    block: Axes,
    names: Mapping[str, object] | None = None,
) -> None:
    """Run a kernel as plain Python, one thread after the other: for tests, and for a debugger.

    Args:
        kernel: what to run.
        arguments: its arguments, with flat arrays or lists in the place of pointers.
        grid: blocks on each axis.
        block: threads of a block on each axis.
        names: what to put in the place of functions that the kernel calls by name.
    """
    sizes = (range(size) for size in (*grid, *block))
    for *block_index, thread_x, thread_y in itertools.product(*sizes):
        position = ThreadPosition(grid, Axes(*block_index), block, Axes(thread_x, thread_y))
        bound = {**(names or {}), "cuda": position}
        bind(kernel.entry, kernel.parts, bound, inline=lambda part: part)(*arguments)


def twin(
    entry: Callable[..., Any],  # Any: each entry has its own result
    signature: str,
    *,
    parts: Sequence[Callable[..., Any]] = (),
    outputs_are_apart: bool = False,
) -> Callable[..., Any]:
    """Compile a kernel for the CPU, or load it from the disk cache.

    The result takes arguments of the signature's types only, and raises TypeError for others. It
    runs without the GIL, checks no index and starts no thread. NUMBA_DISABLE_JIT does not concern
    it: plain Python would neither check the types nor come to an end. `launch_plainly` is for
    debuggers.

    Args:
        entry: called from Python; may use `pointer_to`, the functions of `addresses`,
            and the parts.
        signature: in Numba's notation, `"boolean(float32[:, ::1], float64)"`.
        parts: functions that the entry uses by name, each after the parts that it uses itself.
        outputs_are_apart: an array that the kernel writes shares no byte with another argument:
            the entry writes nothing before it has checked that. The compiler uses vectors where
            it would have to compare too many addresses otherwise.
    """
    start = time.perf_counter()
    # Here, because a program that runs no kernel (a worker process) need not wait for it.
    from numba import njit

    from parllel.kernels.code_cache import compile_or_load, with_compiler

    names = {"pointer_to": _pointer_intrinsic(), **_memory_intrinsics()}
    pipeline = _no_alias_pipeline() if outputs_are_apart else None
    with with_compiler():
        function = bind(entry, parts, names, njit(inline="always"))
        function.__qualname__ += f"_{_checksum():08x}"
        # "contract" fuses multiply and add, as a GPU does: without it the twin differs by a
        # rounding. No other licence of fast math is taken: NaN, infinity and the order of sums
        # stay as written.
        dispatcher = njit(fastmath={"contract"}, nogil=True, pipeline_class=pipeline)(function)
        compile_or_load(dispatcher, signature)
    _spent.seconds += time.perf_counter() - start
    return dispatcher


class _Spent(threading.local):
    seconds = 0.0


_spent = _Spent()


def compile_seconds() -> float:
    """Return the seconds for which the calling thread has waited for twins, loaded ones included.

    A clock that measures a program's own work leaves them out.
    """
    return _spent.seconds


def bind(
    entry: Callable[..., Any],
    parts: Sequence[Callable[..., Any]],
    names: Mapping[str, object],
    inline: Callable[[types.FunctionType], object],
) -> types.FunctionType:
    """Return the entry with a target's own functions in the place of their names.

    Args:
        entry: a plain function.
        parts: what it calls by name; each is bound to the ones before it.
        names: what the target offers, by name.
        inline: makes of a part what the target can inline.
    """
    bound = dict(names)
    for part in parts:
        bound[part.__name__] = inline(_with_globals(part, bound))
    return _with_globals(entry, bound)


def _with_globals(body: Callable[..., Any], names: Mapping[str, object]) -> types.FunctionType:
    assert isinstance(body, types.FunctionType)
    return types.FunctionType(body.__code__, {**body.__globals__, **names}, body.__name__)


@functools.cache
def _checksum() -> int:
    """Return a checksum of all that compiled code may depend on: the modules of this folder.

    Numba's disk cache notices a change of the entry's own file only. With the checksum in the
    entry's name, an edit of a part, of a constant or of this file is noticed as well.
    Proof: `test_the_cache_notices_an_edit_of_another_module`.
    """
    files = sorted(Path(__file__).parent.glob("*.py"))
    return zlib.crc32(b"".join(file.read_bytes() for file in files))


@functools.cache
def _no_alias_pipeline() -> type["Compiler"]:
    """Return a compiler that marks arrays as `noalias`; Numba has the flag, but no option for it.

    Without it LLVM must compare addresses before a loop may use vectors. More than 8 pairs are too
    many for it, and the loop stays scalar.
    Proof: `test_rows_are_computed_in_vectors`.
    """
    from numba.core.compiler import Compiler

    class NoAliasCompiler(Compiler):
        def define_pipelines(self):  # type: ignore[no-untyped-def]  # as untyped as the base's
            self.state.flags.noalias = True
            return super().define_pipelines()  # type: ignore[no-untyped-call]

    return NoAliasCompiler


@functools.cache
def _pointer_intrinsic() -> object:
    from numba import types as numba_types
    from numba.extending import intrinsic

    @intrinsic
    def pointer_to(typing_context, array):  # type: ignore[no-untyped-def]  # Numba's own protocol
        is_bool = array.dtype == numba_types.boolean
        element = numba_types.uint8 if is_bool else array.dtype

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            array_type = context.make_array(signature.args[0])
            return array_type(context, builder, arguments[0]).data

        pointer = numba_types.CPointer(element)  # type: ignore[no-untyped-call]  # Numba's gap
        return pointer(array), generate

    return pointer_to


@functools.cache
def _memory_intrinsics() -> dict[str, object]:
    from numba.extending import intrinsic

    copies = memory_intrinsics(intrinsic, address_space=0, is_aligned=False, joins_words=True)
    words = word_intrinsics(intrinsic, address_space=0, has_lanes=False)
    words |= instruction_intrinsics(intrinsic)
    return copies | words | scalar_intrinsics(intrinsic, address_space=0, has_threads=False)
