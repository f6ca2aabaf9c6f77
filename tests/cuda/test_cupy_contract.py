"""The stand-in for CuPy against the CuPy that is installed: names, signatures, forms of arrays.

CuPy needs no driver to be imported, nor for views of memory that it does not own. What it does on
a device is in no test here.
"""

import ast
import ctypes
import inspect
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import parllel.cuda
from parllel import cuda
from parllel.testing.simulated_cuda import capture, simulated_cuda
from parllel.testing.simulated_cuda.engine import Engine
from parllel.testing.simulated_cuda.library import make_library
from parllel.testing.simulated_cuda.memory import Memory
from parllel.testing.simulated_cuda.schedules import Eager

REASON = "CuPy is not installed; the cuda13 extra brings it"
needs_cupy = pytest.mark.skipif(find_spec("cupy") is None, reason=REASON)

pytestmark = pytest.mark.long

CUDA_SOURCES = sorted(Path(parllel.cuda.__file__).parent.glob("*.py"))

# Python's and NumPy's protocols whose members count as CuPy's own names.
PROTOCOLS = {
    *("__array__", "__array_function__", "__dlpack__", "__dlpack_device__", "__len__"),
    *("__cuda_array_interface__", "__getitem__", "__setitem__", "__bool__", "__int__"),
    *("__float__", "__iter__", "__enter__", "__exit__", "__call__", "__cuda_stream__"),
}


def stand_in() -> ModuleType:
    return make_library(Memory(Engine(Eager()), 1000))


def names_of(library: Any, prefix: str = "cupy") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names of a stand-in: functions, classes, and the classes' members."""
    for name, member in vars(library).items():
        if name.startswith("__"):
            continue
        yield f"{prefix}.{name}", member
        if isinstance(member, ModuleType):
            yield from names_of(member, f"{prefix}.{name}")
        elif inspect.isclass(member):
            for inner in public_members(member):
                yield f"{prefix}.{name}.{inner}", inspect.getattr_static(member, inner)


def public_members(cls: type) -> list[str]:
    """Return what a class of the stand-in offers, its bases' members too."""
    found = {name for each in cls.__mro__ if each.__module__ != "builtins" for name in vars(each)}
    return sorted(name for name in found if not name.startswith("_") or name in PROTOCOLS)


NAMES = dict(names_of(stand_in()))
CALLABLE = {name: member for name, member in NAMES.items() if inspect.isfunction(member)}


def real(name: str) -> Any:
    """Return what the installed CuPy has under a dotted name."""
    import cupy

    found: Any = cupy
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def parameters_of(function: Any) -> list[str] | None:
    """Return a signature's parameters in order, with `*` and `**` where there are any.

    Cython's functions that `inspect` can't read have theirs in the docstring's first line.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return parameters_in(function.__doc__ or "")
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [marks.get(each.kind, "") + each.name for each in signature.parameters.values()]


def parameters_in(docstring: str) -> list[str] | None:
    """Read the parameters in the first line of a Cython function's docstring."""
    found = re.match(r"\s*[\w.]+\((?P<inside>.*?)\)( ->.*)?\s*(\n|$)", docstring)
    if found is None:
        return None
    names = []
    for part in filter(None, re.split(r",\s*", found["inside"])):
        name = part.partition("=")[0].split()[-1]  # behind the type, before the default
        if name not in ("*", "/"):
            names.append(name)
    return names


def fits(ours: list[str], theirs: list[str]) -> bool:
    """Tell whether a call that the stand-in takes is one that CuPy takes, name by name."""
    ours = [name for name in ours if name != "self"]
    theirs = [name for name in theirs if name not in ("self", "cls")]
    takes_any = "**kwargs" in theirs
    kept = [name for name in theirs if name in ours]
    missing = [name for name in ours if name not in theirs]
    return kept == [name for name in ours if name in theirs] and (not missing or takes_any)


# Names and signatures


@needs_cupy
@pytest.mark.parametrize("name", NAMES)
def test_cupy_has_the_name(name: str) -> None:
    real(name)


@needs_cupy
@pytest.mark.parametrize("name", CALLABLE)
def test_cupy_takes_the_same_arguments(name: str) -> None:
    theirs = parameters_of(real(name))
    if theirs is None:
        assert name.rpartition(".")[2].startswith("__"), "no signature, and not Python's own"
        return
    ours = parameters_of(CALLABLE[name])
    assert ours is not None
    if name == "cupy.ndarray.__array__":
        ours.remove("copy")  # which NumPy 2 asks for, with or without
    assert fits(ours, theirs), f"{name}: ours {ours}, CuPy's {theirs}"


CONSTRUCTED = [name for name, member in NAMES.items() if inspect.isclass(member)]


@needs_cupy
@pytest.mark.parametrize("name", CONSTRUCTED)
def test_cupys_classes_are_made_from_the_same_arguments(name: str) -> None:
    cls = real(name)
    theirs = parameters_of(cls)
    if name == "cupy.ndarray":  # its class hides what its constructor takes
        theirs = parameters_in(cls.__doc__)
    ours = parameters_of(NAMES[name])
    assert ours is not None
    assert theirs is not None
    assert fits(ours, theirs), f"{name}: ours {ours}, CuPy's {theirs}"


def test_parameters_are_read_from_docstrings() -> None:
    for text, expected in (
        ("hostRegister(intptr_t ptr, size_t size, unsigned int flags)", ["ptr", "size", "flags"]),
        ("getDeviceCount() -> int", []),
        ("RawModule(str code=None, *, str path=None)\n\nMore.", ["code", "path"]),
        ("A sentence.", None),
    ):
        assert parameters_in(text) == expected


@pytest.mark.parametrize(
    ("ours", "theirs"), [(["a", "x"], ["a"]), (["b", "a"], ["a", "b"]), (["a"], [])]
)
def test_a_signature_that_does_not_fit_is_found(ours: list[str], theirs: list[str]) -> None:
    assert not fits(ours, theirs)
    assert fits(ours, ours)


# What parllel.cuda uses


def uses_of_cupy(source: str) -> set[str]:
    """Return the dotted names that start with `cupy`, or with a call that returns it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        parts: list[str] = []
        inner: ast.expr | ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        is_call = isinstance(inner, ast.Call) and getattr(inner.func, "id", "") == "library"
        if parts and (is_call or (isinstance(inner, ast.Name) and inner.id == "cupy")):
            found.add(".".join(["cupy", *reversed(parts)]))
        if parts and isinstance(inner, ast.Name) and inner.id == "runtime":
            found.add(".".join(["cupy.cuda.runtime", *reversed(parts)]))
    return found


USES = set().union(*(uses_of_cupy(path.read_text()) for path in CUDA_SOURCES))


def test_uses_are_found() -> None:
    source = "def f(runtime):\n  cupy.cuda.Event(x).done\n  library().empty(1)\n  runtime.free()"
    expected = {"cupy.cuda", "cupy.cuda.Event", "cupy.empty", "cupy.cuda.runtime.free"}
    assert uses_of_cupy(source) == expected
    assert {"cupy.RawModule", "cupy.cuda.runtime.hostRegister"} <= USES


@pytest.mark.parametrize("name", sorted(USES))
def test_the_stand_in_has_what_parllel_uses(name: str) -> None:
    found: Any = stand_in()
    for part in name.split(".")[1:]:
        found = getattr(found, part)


@needs_cupy
@pytest.mark.parametrize("name", sorted(USES))
def test_cupy_has_what_parllel_uses(name: str) -> None:
    real(name)


# Members of objects, which no dotted name shows: arrays, streams, events, pointers, attributes.
USED_MEMBERS = {
    "cupy.ndarray": (
        *("set", "get", "data", "nbytes", "copy", "shape", "strides", "dtype", "flags", "size"),
        *("__dlpack_device__", "__dlpack__", "__cuda_array_interface__"),
    ),
    "cupy.cuda.Stream": (
        *("null", "synchronize", "wait_event", "from_external", "__enter__"),
        *("begin_capture", "end_capture", "is_capturing"),
    ),
    "cupy.cuda.Graph": ("launch", "upload"),
    "cupy.cuda.Event": ("record", "done", "synchronize"),
    "cupy.cuda.MemoryPointer": ("memset_async",),
    "cupy.cuda.PythonFunctionAllocator": ("malloc",),
    "cupy.cuda.Device": ("compute_capability",),
    "cupy.RawModule": ("get_function",),
}
EACH_MEMBER = [(name, member) for name, members in USED_MEMBERS.items() for member in members]


@pytest.mark.parametrize(("name", "member"), EACH_MEMBER)
def test_the_stand_ins_objects_have_what_parllel_uses(name: str, member: str) -> None:
    found: Any = stand_in()
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    assert hasattr(found, member)


@needs_cupy
@pytest.mark.parametrize(("name", "member"), EACH_MEMBER)
def test_cupys_objects_have_what_parllel_uses(name: str, member: str) -> None:
    assert hasattr(real(name), member)


@needs_cupy
def test_modes_of_captures_are_cupys_numbers() -> None:
    from cupy.cuda import runtime

    modes = "Global", "ThreadLocal", "Relaxed"
    theirs = tuple(getattr(runtime, f"streamCaptureMode{mode}") for mode in modes)
    assert theirs == (capture.GLOBAL, capture.THREAD_LOCAL, capture.RELAXED)


@needs_cupy
def test_instances_of_cupy_have_what_parllel_uses() -> None:
    import cupy

    assert cupy.cuda.Stream.null.ptr == 0
    error = cupy.cuda.runtime.CUDARuntimeError(35)
    assert (error.status, isinstance(error, RuntimeError)) == (35, True)
    assert hasattr(cupy.cuda.runtime.PointerAttributes, "devicePointer")
    assert hasattr(cupy.cuda.MemoryPointer, "ptr")
    assert hasattr(cupy.cuda.MemoryPointer, "device_id")
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert parameters_of(cupy.RawKernel.__call__)[:4] == ["self", "grid", "block", "args"]
    assert cupy.cuda.get_allocator().__self__ is cupy.get_default_memory_pool()
    assert hasattr(cupy.get_default_memory_pool(), "free_bytes")
    allocator = cupy.cuda.PythonFunctionAllocator(lambda size, device: 0, lambda address, device: 0)
    assert allocator.malloc.__self__ is allocator


@needs_cupy
def test_cupy_wraps_the_streams_of_others_without_owning_them() -> None:
    import cupy

    class Handle:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 0x7000

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = cupy.cuda.Stream.from_external(Handle())
        assert stream.ptr == 0x7000
        del stream  # it would be destroyed here, which raises without a driver


# Forms: CuPy's own views of host memory, without a driver


def both(shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any, Any]:
    """Return CuPy's array and the stand-in's over equal places, and what keeps them."""
    import cupy

    n = int(np.prod(shape)) * np.dtype(dtype).itemsize + 1
    room = (ctypes.c_uint8 * n)()
    memory = cupy.cuda.UnownedMemory(ctypes.addressof(room), n, room, 0)
    theirs = cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))
    with simulated_cuda("eager"):
        ours = cuda.library().ndarray(shape, dtype)
    return theirs, ours, room


def form(array: Any, first: Any) -> Any:
    """Return what can be compared: form, dtype, and the place of the first element."""
    place = array.data.ptr - first.data.ptr if array.size else 0
    strides = array.strides if array.size else ()
    contiguous = array.flags.c_contiguous, array.flags.f_contiguous
    return array.shape, strides, array.dtype, array.nbytes, array.ndim, place, contiguous


def result(use: Any, array: Any) -> Any:
    """Return the form of what `use` makes of an array, or the kind of error it raises."""
    try:
        return form(use(array), array)
    except (IndexError, ValueError, TypeError, RuntimeError) as error:
        return type(error)


FORMS = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


@needs_cupy
@given(st.data(), FORMS, st.sampled_from(["f4", "i8", "u1", "?"]))
def test_views_have_cupys_form(data: st.DataObject, shape: tuple[int, ...], dtype: str) -> None:
    theirs, ours, _room = both(shape, dtype)
    for _ in range(2):
        index = data.draw(hnp.basic_indices(theirs.shape, allow_newaxis=True))
        assert result(lambda array, index=index: array[index], ours) == result(
            lambda array, index=index: array[index], theirs
        )
        theirs, ours = theirs[index], ours[index]


@needs_cupy
@given(FORMS, FORMS, st.sampled_from(["f4", "i8", "u1"]))
def test_reshaped_arrays_have_cupys_form(
    shape: tuple[int, ...], new: tuple[int, ...], dtype: str
) -> None:
    theirs, ours, _room = both(shape, dtype)
    for target in (new, (-1,), (ours.size,), (1, *shape)):
        expected = result(lambda array, target=target: array.reshape(target), theirs)
        assert result(lambda array, target=target: array.reshape(target), ours) == expected


@needs_cupy
@given(FORMS, st.sampled_from(["f4", "i8", "u1"]), st.sampled_from(["f8", "i2", "u1", "f4"]))
def test_retyped_arrays_have_cupys_form(shape: tuple[int, ...], dtype: str, new: str) -> None:
    theirs, ours, _room = both(shape, dtype)
    if 0 in shape:
        return  # CuPy computes with the strides of nothing
    assert result(lambda array: array.view(new), ours) == result(
        lambda array: array.view(new), theirs
    )


@needs_cupy
@pytest.mark.parametrize(
    "use",
    [
        np.asarray,
        len,
        np.shape,
        np.ndim,
        hash,
        lambda array: array[9],
        lambda array: array[0, 0, 0],
        lambda array: array.__setitem__(..., np.zeros((4, 6), "f4")),
        lambda array: array.__setitem__(..., [1, 2]),
        lambda array: array.fill(np.zeros(3)),
        lambda array: array.set(np.zeros((4, 6))),
        lambda array: array.set(np.zeros((4, 5), "f4")),
        lambda array: array[::2, ::2].set(np.zeros((2, 3), "f4")),
        lambda array: array.set([1]),
        lambda array: len(array[0, 0]),
        lambda array: array[0, 0].view("u1"),
        lambda array: array[:, ::2].view("f8"),
    ],
)
def test_what_cupy_answers_or_refuses_without_a_device_so_does_the_stand_in(use: Any) -> None:
    def answer(array: Any) -> Any:
        try:
            return use(array)
        except (IndexError, ValueError, TypeError, RuntimeError) as error:
            return type(error), str(error)[:30]

    theirs, _, _room = both((4, 6), "f4")
    expected = answer(theirs)
    with simulated_cuda("eager"):
        ours = answer(cuda.library().ndarray((4, 6), "f4"))
    assert str(ours).lower()[:45] == str(expected).lower()[:45]
