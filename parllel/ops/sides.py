"""Which side works on arrays, the host or a GPU, and what its kernels are given for them.

A kernel's twin works on arrays of NumPy, on the host, and is done when it returns. A launch works
on arrays of CuPy, in the caller's current stream, and nothing waits for it. The arrays that an op
is given decide which one it is (`common_side`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.cuda import AnyArray, DeviceArray, Stream
from parllel.kernels.row_table import Index
from parllel.storages import Side

AnyIndex: TypeAlias = Index | DeviceArray  # rows: a range, integers [n], or a device's int64 [n]


def common_side(name: str, arrays: Sequence[AnyArray]) -> Side:
    """Return the side that arrays are worked on: "host" for NumPy's, "gpu" for all others.

    Raises:
        TypeError: some arrays are NumPy's, and some are not. The message begins with `name`.
        RuntimeError: one is memory of another device than the current one.
    """
    are_on_host = {isinstance(array, np.ndarray) for array in arrays}
    if len(are_on_host) > 1:
        raise TypeError(f"{name}: got arrays of NumPy and of CuPy, expected one kind")
    if True in are_on_host:
        return "host"
    cuda.check_current(*arrays)  # kernels get addresses, which tell of no device
    return "gpu"


def common_side_of(arrays: Mapping[str, AnyArray]) -> Side:
    """Return the side that arrays, which are given by their names, are worked on.

    Raises:
        TypeError: some arrays are NumPy's, and some are not; the message names one of the fewer.
        RuntimeError: one is memory of another device than the current one.
    """
    on_host = [name for name, array in arrays.items() if isinstance(array, np.ndarray)]
    others = [name for name in arrays if name not in on_host]
    if on_host and others:
        name, like = min(on_host, others, key=len)[0], max(others, on_host, key=len)[0]
        raise TypeError(
            f"{name}: {_kind_of(arrays[name])}, expected {_kind_of(arrays[like])} as {like} is;"
            " all arrays are worked on by the same side"
        )
    if on_host:
        return "host"
    cuda.check_current(*arrays.values())
    return "gpu"


def _kind_of(array: AnyArray) -> str:
    kind = type(array)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def address_of(array: AnyArray | None) -> int:
    """Return the address of an array's first element; 0 for no array."""
    if array is None:
        return 0
    address: int
    if isinstance(array, np.ndarray):
        address = array.__array_interface__["data"][0]
    else:
        address = array.data.ptr
    return address


def to_side(values: NDArray[Any], side: Side) -> AnyArray:
    """Return values of the host where a side reads them: as they are, or copied to a device.

    The copy is made in the stream that is current: work in another stream has to wait for it.
    """
    return cuda.to_device(values) if side == "gpu" else values


def make_table(numbers: Sequence[int], side: Side) -> AnyArray:
    """Return integers as a table that a kernel reads, int64, where a side reads it (`to_side`)."""
    return to_side(np.array(numbers, np.int64), side)


def as_argument(array: AnyArray) -> int | DeviceArray:
    """Return what a kernel that takes an address is given: of a device array, the array itself.

    An address keeps nothing alive: keep the array as long as the argument.
    """
    return address_of(array) if isinstance(array, np.ndarray) else array


def contiguous(values: AnyArray) -> AnyArray:
    """Return an array itself where it is C-contiguous, else a copy, which can't be captured."""
    if values.flags.c_contiguous:
        return values
    if not isinstance(values, np.ndarray):
        cuda.refuse_capture("a copy of values that are not contiguous")
    return values.copy()


def is_on_device(index: AnyIndex) -> bool:
    """Return whether the rows of an index are in device memory, where nothing can check them."""
    return not isinstance(index, range | np.ndarray)


def index_arguments(
    index: AnyIndex, *, stream: Stream | None = None
) -> list[np.int64 | DeviceArray]:
    """Return a kernel's three arguments for an index: a vector or 0, then start and step.

    Integers of the host are copied to the device, in a stream, the caller's current one by default.
    """
    if isinstance(index, range):
        return [np.int64(0), np.int64(index.start), np.int64(index.step)]
    if isinstance(index, np.ndarray):
        index = cuda.to_device(np.ascontiguousarray(index, np.int64), stream=stream)
    return [index, np.int64(0), np.int64(0)]


def fill_rows(rows: tuple[NDArray[np.intp] | int, ...], number: float, *, out: AnyArray) -> None:
    """Write a number to some rows; of CuPy's array in the caller's current stream.

    In memory that both sides use, the write thus comes behind the launches that were queued.

    Args:
        rows: intp [n] for each leading axis, as `numpy.nonzero` returns them, or one row of it.
        number: what is written.
        out: the array, overwritten there.
    """
    if isinstance(out, np.ndarray):
        out[rows] = number
        return
    cuda.check_current(out)
    with cuda.use_stream():
        out[rows] = number


def copy_to_host(values: AnyArray) -> NDArray[Any]:
    """Return a copy of values on the host, which waits for the stream of CuPy's values."""
    return values.copy() if isinstance(values, np.ndarray) else cuda.to_host(values)


def copy_from_host(values: NDArray[Any], *, out: AnyArray) -> None:
    """Write values of the host to a contiguous array; one of CuPy's in the current stream.

    Args:
        values: any shape and dtype, C-contiguous.
        out: array of the same shape and dtype, overwritten.
    """
    if isinstance(out, np.ndarray):
        out[...] = values
    else:
        cuda.copy_to_device(values, out_device=out)
