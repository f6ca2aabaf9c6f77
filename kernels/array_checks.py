"""Checks of a kernel's arguments at its boundary: they raise, and say what was expected."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Shaped(Protocol):
    """An array of NumPy, CuPy or parllel, as far as a check of its shape and dtype needs it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""

    @property
    def ndim(self) -> int:
        """Number of axes."""

    @property
    def dtype(self) -> np.dtype[Any]:  # Any: of every kind
        """Type of the elements."""


def is_apart(array: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> bool:
    """Return whether two contiguous arrays share no byte. A twin calls it, compiled."""
    begin, other_begin = array.ctypes.data, other.ctypes.data
    return begin + array.nbytes <= other_begin or other_begin + other.nbytes <= begin


def is_aligned(array: npt.NDArray[np.generic]) -> bool:
    """Return whether the elements lie at multiples of their size. A twin calls it, compiled.

    Numba's types do not tell it of a C-contiguous array.
    """
    return int(np.int64(array.ctypes.data)) % array.itemsize == 0


def are_native(*arrays: npt.NDArray[np.generic]) -> bool:
    """Return whether the elements are in the byte order of this machine.

    To be asked before numbers are given to a twin. Numba remembers the types of arrays it has met,
    and leaves the byte order out: others would be read as numbers of this machine, or these be
    refused as others were. Proof: `test_another_byte_order_is_refused_whatever_came_before`.
    """
    for array in arrays:  # noqa: SIM110  # a generator takes longer
        if not array.dtype.isnative:
            return False
    return True


def check_is_ndarray(name: str, array: object) -> None:
    """Raise TypeError unless an argument is an array of NumPy."""
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{name}: {type(array).__name__}, expected numpy.ndarray; "
            "convert an input with numpy.asarray, allocate an output with numpy.empty"
        )


def check_dtype(name: str, array: Shaped, expected: type[np.generic]) -> None:
    """Raise ValueError unless an array has the dtype that is expected."""
    if array.dtype != expected:
        raise ValueError(
            f"{name}: dtype {array.dtype}, expected {np.dtype(expected)}; "
            f"convert an input with .astype(numpy.{expected.__name__}), allocate an output with it"
        )


def check_shape(name: str, array: Shaped, expected: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless an array has the shape that is expected; `meaning` explains it."""
    if array.shape != expected:
        raise ValueError(f"{name}: shape {array.shape}, expected {expected} = {meaning}")


def check_layout(name: str, array: npt.NDArray[Any]) -> None:
    """Raise ValueError unless an array of NumPy is C-contiguous and aligned."""
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(
            f"{name}: strides {array.strides} at address {array.ctypes.data:#x}, "
            "expected C-contiguous and aligned; "
            "copy an input with .copy(), allocate an output with numpy.empty"
        )


def check_fraction(name: str, number: object) -> None:
    """Raise TypeError or ValueError unless an argument is a real number in [0, 1]."""
    if not isinstance(number, int | float | np.integer | np.float16 | np.float32):
        raise TypeError(
            f"{name}: {type(number).__name__}, expected float; convert it with float({name})"
        )
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: {number}, expected a number in [0, 1], such as 0.99")


def check_output(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise ValueError if the array of a name is read-only, or shares a byte with another one."""
    output = arrays[name]
    if not output.flags.writeable:
        raise ValueError(f"{name}: read-only, expected writable; allocate it with numpy.empty")
    for other_name, other in arrays.items():
        if other_name != name and np.may_share_memory(output, other):
            raise ValueError(
                f"{name}: overlaps {other_name}, expected memory of its own; "
                "allocate it with numpy.empty"
            )
