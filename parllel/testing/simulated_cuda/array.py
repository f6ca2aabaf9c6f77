"""The stand-in for cupy.ndarray: an array whose work is queued, and which NumPy can't read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from parllel.testing.simulated_cuda.active import current_stream, machine
from parllel.testing.simulated_cuda.allocators import MemoryPointer, UnownedMemory, get_allocator
from parllel.testing.simulated_cuda.array_transfers import (
    array_interface,
    download,
    to_dlpack,
    upload,
)
from parllel.testing.simulated_cuda.errors import SimulationError
from parllel.testing.simulated_cuda.host_values import Check
from parllel.testing.simulated_cuda.indices import Index, Source
from parllel.testing.simulated_cuda.streams import Device, Stream

_NO_NUMPY = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy"
    " array explicitly."
)
_COMPUTABLE = "?bhilqBHILQefdFD"  # dtypes that CuPy's own kernels take
_MAX_OVERLAP_WORK = 10_000  # where it is harder to tell, rows are taken to be apart


class ndarray:  # noqa: N801  # CuPy's name
    """Stands in for cupy.ndarray.

    `_values` is the memory as NumPy sees it: what has run so far. It doesn't keep it alive.
    """

    __array_ufunc__ = None  # NumPy's operators and functions refuse the array
    __hash__ = None  # type: ignore[assignment]  # as CuPy's

    def __init__(
        self,
        shape: int | tuple[int, ...],
        dtype: DTypeLike = float,
        memptr: MemoryPointer | None = None,
        strides: tuple[int, ...] | None = None,
        order: str = "C",
    ) -> None:
        lengths = tuple(shape) if isinstance(shape, tuple | list) else (int(shape),)
        element = np.dtype(dtype)
        size = math.prod(lengths)
        pointer = get_allocator()(size * element.itemsize) if memptr is None else memptr
        if strides is None:
            first, nbytes = 0, size * element.itemsize
        else:
            first, nbytes = _reach(lengths, strides, element.itemsize)
        buffer = MemoryPointer(pointer.mem, pointer.ptr - pointer.mem.ptr + first)._bytes_behind(
            nbytes
        )
        form: Literal["C", "F"] = "F" if order == "F" else "C"
        self._values: NDArray[Any] = np.ndarray(lengths, element, buffer, -first, strides, form)
        self._memory = pointer.mem

    def _view(self, values: NDArray[Any]) -> ndarray:
        view = ndarray.__new__(ndarray)
        view._values, view._memory = values, self._memory
        return view

    # What it looks like

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self._values.shape

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next, on each axis."""
        return self._values.strides

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self._values.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._values.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._values.size

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self._values.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self._values.nbytes

    @property
    def flags(self) -> Any:
        """Object with `c_contiguous` and `f_contiguous`."""
        return self._values.flags

    @property
    def data(self) -> MemoryPointer:
        """Pointer to the first element; keeps the memory alive."""
        address = int(self._values.__array_interface__["data"][0])
        return MemoryPointer(self._memory, address - self._memory.ptr)

    @property
    def device(self) -> Device:
        """The device whose memory it is."""
        return Device(self._memory.device_id)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    # How it leaves the device

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return array_interface(self)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        return to_dlpack(self, stream, max_version, dl_device, copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # kDLCPU: see `to_dlpack`

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        raise TypeError(_NO_NUMPY)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return func(self._values) if func in (np.shape, np.ndim) else NotImplemented

    def get(
        self,
        stream: Stream | None = None,
        order: str = "C",
        out: NDArray[Any] | None = None,
        blocking: bool = True,
    ) -> NDArray[Any]:
        """Copy to the host, which waits for it if `blocking`, or without page-locked `out`."""
        if out is None:
            out = np.empty(self.shape, self.dtype, "F" if order == "F" else "C")
        address = current_stream() if stream is None else stream.ptr
        return download(self, out, address, blocking=blocking)

    def item(self) -> Any:
        """Return the only element. The host waits for it."""
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    # Views, and copies on the device

    def __getitem__(self, slices: object) -> ndarray:
        index = Index(slices, self.shape, _source)
        if not index.is_gathered:
            return self._view(self._values[index.example()])
        self._check_computable("an index with arrays")
        out = ndarray(self._shape_at(index), self.dtype)
        source, target = self._values, out._values
        out._queue(
            "a gather",
            lambda: np.copyto(target, source[index.read()]),
            *(*self._checks, *index.checks),
        )
        return out

    def __setitem__(self, slices: object, value: object) -> None:
        index = Index(slices, self.shape, _source)
        if not index.is_gathered:
            self._view(self._values[index.example()])._assign(value)
            return
        self._check_computable("an index with arrays")
        source, checks = self._fit(value, self._shape_at(index))
        target = self._values
        self._queue(
            "a scatter",
            lambda: target.__setitem__(index.read(), source),
            *(*checks, *index.checks),
        )

    def __iter__(self) -> Iterator[ndarray]:
        return (self[row] for row in range(len(self)))

    def fill(self, value: object) -> None:
        """Set all elements to a scalar, in the current stream."""
        if isinstance(value, ndarray):
            raise TypeError("fill: got an array, expected a scalar")
        self._assign(value)

    def view(self, dtype: DTypeLike | None = None) -> ndarray:
        """Return the same memory, as another type."""
        return self._view(self._values.view(self.dtype if dtype is None else dtype))

    def reshape(self, *shape: Any) -> ndarray:
        """Return a view of another shape, or a copy made in the current stream."""
        values: NDArray[Any] = self._values.reshape(*shape)
        if values.size and not np.may_share_memory(values, self._values):
            return self.copy().reshape(*shape)
        return self._view(values)

    def copy(self, order: str = "C") -> ndarray:
        """Return a copy, made in the current stream."""
        return self.astype(self.dtype, order)

    def astype(
        self,
        dtype: DTypeLike,
        order: str = "K",
        casting: None = None,
        subok: None = None,
        copy: bool = True,
    ) -> ndarray:
        """Return the values as another type, cast in the current stream."""
        if not copy and np.dtype(dtype) == self.dtype:
            return self
        has_fortran_order = self.flags.f_contiguous and not self.flags.c_contiguous
        is_fortran = order == "F" or (order == "K" and has_fortran_order)
        out = ndarray(self.shape, dtype, order="F" if is_fortran else "C")
        out._assign(self)
        return out

    def set(self, arr: NDArray[Any], stream: Stream | None = None) -> None:
        """Copy values of the host here, in a stream, the current one by default."""
        upload(arr, self, current_stream() if stream is None else stream.ptr)

    # How the work is queued

    @property
    def _checks(self) -> tuple[Check, ...]:
        return (self._memory._region.check,)

    def _assign(self, value: object) -> None:
        target, (source, checks) = self._values, self._fit(value, self.shape)
        is_same_form = source.shape == target.shape and source.strides == target.strides
        is_copied_as_bytes = is_same_form and self.flags.c_contiguous and source.dtype == self.dtype
        if not is_copied_as_bytes or not isinstance(value, ndarray):
            self._check_computable("an assignment")
        if is_same_form and source.ctypes.data == target.ctypes.data:
            return  # the same array: CuPy does nothing
        if _share_memory(source, target):
            raise SimulationError(
                "an assignment reads bytes that it writes: on a device the result depends on the"
                " order of its threads; copy through an array of its own"
            )
        self._queue("an assignment", lambda: target.__setitem__(..., source), *checks)

    def _fit(self, value: Any, shape: tuple[int, ...]) -> tuple[NDArray[Any], tuple[Check, ...]]:
        """Return what an assignment reads, broadcast to a shape, and the checks before it."""
        if not isinstance(value, ndarray) and hasattr(value, "__cuda_array_interface__"):
            value = array_over(value)
        if isinstance(value, ndarray):
            source = value._values
            while source.ndim > len(shape) and source.shape[0] == 1:
                source = source[0, ...]  # a view, also of a vector
            return np.broadcast_to(source, shape), value._checks
        if np.shape(value) != ():
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        scalar = np.empty((), self.dtype)
        scalar[...] = value
        return np.broadcast_to(scalar, shape), ()

    def _check_computable(self, what: str) -> None:
        if not is_computable(self.dtype):
            raise TypeError(f"{what}: CuPy has no kernels for dtype {self.dtype}")

    def _shape_at(self, index: Index) -> tuple[int, ...]:
        shape: tuple[int, ...] = np.broadcast_to(np.zeros(()), self.shape)[index.example()].shape
        return shape

    def _queue(self, name: str, action: Callable[[], None], *checks: Check) -> None:
        """Queue work that writes this array."""

        def run() -> None:
            with np.errstate(all="ignore"):  # a device casts without a word
                action()

        if self.size:
            name = f"{name} that writes an array {self.shape} of {self.dtype}"
            checks = (*self._checks, *checks)
            machine().engine.queue(current_stream(), name, run, checks=checks)


class _DeviceValues:
    """A device array as a source of an index."""

    def __init__(self, array: ndarray) -> None:
        self.checks = array._checks
        self._values = array._values

    def read(self) -> NDArray[Any]:
        """Return the values, at the time when the work runs."""
        return self._values


def _source(item: object) -> Source | None:
    return _DeviceValues(item) if isinstance(item, ndarray) else None


def is_computable(dtype: np.dtype[Any]) -> bool:
    """Tell whether CuPy's kernels take elements of a type, and its arrays come from the host."""
    return dtype.char in _COMPUTABLE and dtype.isnative


def array_over(source: Any) -> ndarray:
    """Return an array over memory that another library shows by the CUDA array interface.

    As in CuPy the host waits for the stream that the interface names.
    """
    interface = source.__cuda_array_interface__
    if interface.get("stream") is not None:
        engine = machine().engine
        engine.counters.stream_synchronizations += 1
        engine.wait(engine.stream_at(interface["stream"]).last)
    shape, element = tuple(interface["shape"]), np.dtype(interface["typestr"])
    if math.prod(shape) == 0:
        return ndarray(shape, element)
    strides, address = interface.get("strides"), interface["data"][0]
    if strides is None:
        strides = np.empty(shape, element).strides
    first, nbytes = _reach(shape, strides, element.itemsize)
    memory = UnownedMemory(address + first, nbytes, source)
    return ndarray(shape, element, MemoryPointer(memory, -first), strides)


def _reach(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Return where the lowest byte lies, counted from the first element, and the bytes in all."""
    if math.prod(shape) == 0:
        return 0, 0
    ends = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    lowest = sum(min(end, 0) for end in ends)
    return lowest, sum(max(end, 0) for end in ends) - lowest + itemsize


def _share_memory(one: NDArray[Any], other: NDArray[Any]) -> bool:
    try:
        work: Any = _MAX_OVERLAP_WORK  # Any: NumPy's types know two numbers only
        return np.shares_memory(one, other, max_work=work)
    except np.exceptions.TooHardError:
        return False
