"""What may be wrong with the rows that a copy names: checks that explain, made after a refusal."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from parllel.kernels.row_table import RowTable

Integers: TypeAlias = npt.NDArray[np.int64]
Index: TypeAlias = range | npt.NDArray[np.integer[Any]]  # Any: of every width


def checked(
    table: RowTable, destination_index: object, source_index: object
) -> tuple[range | Integers, range | Integers]:
    """Raise the error that says what is wrong with two indices, or return them.

    Vectors are returned as copies, of int64: what a copy of rows writes cannot be one of them.

    Raises:
        TypeError, IndexError, ValueError: as `rows.copy_rows` says.
    """
    written = as_index("destination_index", destination_index)
    read = as_index("source_index", source_index)
    check_inside("destination_index", written, table.n_destination)
    check_inside("source_index", read, table.n_source)
    if len(written) != len(read):
        raise ValueError(
            f"rows: {len(written)} rows in destination_index, {len(read)} in source_index, "
            "expected as many; each row that is read goes to one that is written"
        )
    if len(written) and not table.is_apart:
        for name, entry in zip(table.names, table.entries.tolist(), strict=True):
            _check_is_apart(name, entry, _as_vector(written), _as_vector(read))
    return written, read


def as_index(name: str, index: object) -> range | Integers:
    """Return a range as it is, and integers as a copy of them, of int64.

    Raises:
        TypeError: it is neither.
        ValueError: the integers are no vector.
    """
    if isinstance(index, range):
        return index
    if not isinstance(index, np.ndarray) or not np.issubdtype(index.dtype, np.integer):
        kind = f"dtype {index.dtype}" if isinstance(index, np.ndarray) else type(index).__name__
        raise TypeError(
            f"{name}: {kind}, expected a range or a vector of integers; "
            "convert a list with numpy.asarray, a mask with numpy.flatnonzero"
        )
    if index.ndim != 1:
        raise ValueError(f"{name}: shape {index.shape}, expected one axis")
    return np.array(index, np.int64)


def _as_vector(index: range | Integers) -> Integers:
    return np.asarray(index, np.int64)


def check_inside(name: str, index: range | Integers, limit: int) -> None:
    """Raise IndexError if a row is not in [0, limit)."""
    if isinstance(index, range):
        ends = [index[0], index[-1]] if index else []  # no length: it need not be a machine's
    else:
        ends = [index.min(), index.max()] if index.size else []
    if ends and (min(ends) < 0 or max(ends) >= limit):
        raise IndexError(
            f"{name}: rows {min(ends)} to {max(ends)}, expected rows from 0 to {limit - 1}; "
            "a negative index does not count from the end here"
        )


def _check_is_apart(
    name: str, entry: tuple[int, int, int, int, int], written: Integers, read: Integers
) -> None:
    """Refuse a row that is written and shares a byte with one that is read."""
    destination, destination_stride, source, source_stride, nbytes = entry
    begins = np.sort(destination + written * destination_stride)
    begins_read = source + read * source_stride
    # The first written row that ends after the begin of the read one: does it begin before its end?
    at = np.searchsorted(begins, begins_read - nbytes, side="right")
    follows = begins[np.minimum(at, len(begins) - 1)]
    overlaps = (at < len(begins)) & (follows < begins_read + nbytes)
    if overlaps.any():
        raise ValueError(
            f"{name}: source row {read[overlaps.argmax()]} shares memory with a row that is "
            "written, expected rows apart; copy through a buffer of its own"
        )
