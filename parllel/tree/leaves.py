"""The operations of a tree on one leaf, whatever library the leaf comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array, Jagged, Leaf
from parllel.arrays.interop import is_tensor, to_host, to_tensor
from parllel.tree.errors import raise_at

if TYPE_CHECKING:
    pass


_NUMBERS = "biuf"  # kinds of dtypes: bool, integers, floats


def as_ndarray(leaf: Leaf | Jagged) -> Any:  # Any: an array of NumPy, or a Jagged of such
    """Return a leaf as a NumPy array, over the same memory where the host can read it.

    For memory of a device it is a copy, for which the host waits (`Array.to_ndarray`).
    """
    if isinstance(leaf, Array | Jagged):
        return leaf.to_ndarray()
    values = np.asarray(to_host(leaf))
    if not isinstance(leaf, np.ndarray) and hasattr(leaf, "__cuda_array_interface__"):
        values.flags.writeable = False  # a copy: a write would be lost
    return values


def arrays_over(items: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
    """Return what `as_ndarray` does for Arrays by name, sooner; None where one is no Array."""
    name, arrays = "", {}
    try:
        for name, item in items.items():
            if not isinstance(item, Array):
                return None
            arrays[name] = item.to_ndarray()
    except Exception as error:
        raise_at((name,), error)
    return arrays


def as_tensor(leaf: Leaf | Jagged) -> Any:  # Any: a tensor, or a Jagged of such
    """Return a leaf as a torch tensor over the same memory. Waits for nothing."""
    if isinstance(leaf, Array | Jagged):
        return leaf.to_torch()
    if is_tensor(leaf):
        return leaf
    if cuda.is_device_array(leaf):
        return cuda.tensor_over(leaf)
    if isinstance(leaf, np.ndarray) or not hasattr(leaf, "__dlpack__"):
        return to_tensor(np.asarray(leaf))
    from torch.utils.dlpack import from_dlpack

    return from_dlpack(leaf)  # by way of NumPy, JAX arrays would be read-only, and torch would warn


def checked_write(leaf: Any, index: Any, value: Any) -> tuple[Any, Any, Any]:  # Any: as below
    """Return the assignment `target[place] = content` of a write for which `find_write` has none.

    It is checked: it does not fail.

    Raises:
        IndexError, TypeError, ValueError: as for `check_write`.
    """
    check_write(leaf, index, value)
    if leaf.is_on_host if isinstance(leaf, Array) else isinstance(leaf, np.ndarray):
        value = to_host(value)  # a sparse tensor, as an example, can't be converted
    if is_tensor(leaf) and is_tensor(value):  # of one memory, torch copies no rows that overlap
        is_shared = leaf.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
        value = value.clone() if is_shared else value
    return leaf, index, value


def check_write(leaf: Any, index: Any, value: Any) -> None:  # Any: of every library
    """Raise what `leaf[index] = value` would raise for its index, shape or dtype; write nothing.

    Raises:
        IndexError: the leaf has no such rows.
        TypeError: the leaf's dtype can't hold such a value.
        ValueError: the value's shape does not broadcast to that of the rows, or the leaf is
            read-only.
    """
    rows = leaf if index is Ellipsis else leaf[index]
    shape, dtype = tuple(getattr(rows, "shape", ())), getattr(rows, "dtype", None)
    memory = next(iter(leaf.memory_parts.values())) if isinstance(leaf, Array) else leaf
    if isinstance(memory, np.ndarray) and not memory.flags.writeable:
        raise ValueError("assignment destination is read-only")
    if isinstance(rows, Array) and rows.check_values(value):
        return
    found = getattr(value, "shape", None)
    if found is not None and found != shape and not _broadcasts(tuple(found), shape):
        raise ValueError(
            f"writing a value of shape {tuple(found)} into rows of shape {shape}, dtype {dtype}:"
            " could not broadcast"
        )
    if is_tensor(rows) and not is_tensor(value) and not isinstance(value, int | float):
        rows.new_empty(shape)[...] = value  # torch's own checks: it takes no lists and no ndarrays
        return
    if not isinstance(dtype, np.dtype) or _is_number(dtype, getattr(value, "dtype", None)):
        return
    is_scalar = isinstance(value, int | float | complex | str)
    np.empty(() if is_scalar else shape, dtype)[...] = to_host(value)  # NumPy's own checks


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether NumPy assigns a value of a shape to rows of another; ones in front do not count."""
    n_more = len(shape) - len(wanted)
    if n_more > 0 and any(length != 1 for length in shape[:n_more]):
        return False
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    return all(length in (1, want) for length, want in pairs)


def _is_number(dtype: np.dtype[Any], given: object) -> bool:
    """Whether NumPy converts any number of one dtype to the other without an error."""
    if given is None:
        return False
    return dtype.kind in _NUMBERS and getattr(given, "kind", "f") in _NUMBERS


def describe_leaf(leaf: object) -> tuple[str, str, str, str]:
    """Return a leaf's dtype, shape, storage (or device) and the bytes that it holds."""
    where = getattr(leaf, "storage", None) if isinstance(leaf, Array) else _device(leaf)
    nbytes = leaf.allocated_nbytes if isinstance(leaf, Array) else getattr(leaf, "nbytes", 0)
    shape = tuple(getattr(leaf, "shape", ()))
    return str(getattr(leaf, "dtype", type(leaf).__name__)), str(shape), str(where), f"{nbytes:,}"


def empty_rows(leaf: Leaf, n_rows: int) -> NDArray[Any]:
    """Return a new NumPy array with rows like those of a leaf; its values are not set.

    Args:
        leaf: array [m, ...], the example of the rows.
        n_rows: number of rows of the new array.
    """
    return np.empty((n_rows, *leaf.shape[1:]), leaf.dtype)


def call(leaf: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    """Call a leaf, as one of `tree.mean`, a tree of bound methods."""
    return leaf(*args, **kwargs)


def call_method(leaf: object, name: str, *args: object, **kwargs: object) -> Any:
    """Call a leaf's method."""
    return getattr(leaf, name)(*args, **kwargs)


def _device(leaf: object) -> str:
    return "local" if isinstance(leaf, np.ndarray) else str(getattr(leaf, "device", "-"))


def lock(values: NDArray[Any]) -> None:
    """Make an array read-only: it is a copy, in which a write would be lost."""
    values.flags.writeable = False
