"""Where the rows of a tree's leaves lie, in integers, and which rows an index names; no copies."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Leaves: TypeAlias = Sequence[npt.NDArray[Any]]  # Any: of every dtype but object
Integers: TypeAlias = npt.NDArray[np.int64]
Index: TypeAlias = range | npt.NDArray[np.integer[Any]]  # Any: of every width


class Rows(NamedTuple):
    """One side of one leaf: row i is the `nbytes` bytes that begin at `address + i * stride`."""

    address: int
    stride: int
    nbytes: int
    n_rows: int

    @property
    def begin(self) -> int:
        """The lowest address."""
        return self.address + min(0, self.stride * max(0, self.n_rows - 1))

    @property
    def end(self) -> int:
        """The address after the highest one; that of the beginning where there is no byte."""
        if self.n_rows == 0 or self.nbytes == 0:
            return self.begin
        return max(self.address, self.address + self.stride * (self.n_rows - 1)) + self.nbytes


class RowTable:
    """Where the rows of all leaves lie on both sides of a copy; made once, used for many copies.

    A table made of `Rows` holds addresses only: its maker keeps the memory alive, and gives the
    table only to a processor that can reach the addresses. A table made of arrays keeps them.

    >>> written, read = np.zeros((4, 2)), np.ones((3, 2))
    >>> table = RowTable.of_arrays([written], [read], names=["reward"])
    >>> table.n_destination, table.n_source, table.is_apart
    (4, 3, True)

    Args:
        destination: for each leaf the rows that copies write. Leaves share no byte.
        source: for each leaf the rows that copies read, of as many bytes. It may share memory
            with the same leaf's destination; each copy is then checked for it.
        names: what errors call the leaves, such as `obs.camera`; left out, they are numbered.

    Attributes:
        entries: int64 [n_leaves, 5], read-only: destination address and stride, source address and
            stride, bytes in a row. The format of the kernel.
        address: address of the entries in host memory.
        n_destination, n_source: rows that all leaves have; an index is below.
        is_apart: no leaf's source shares a byte with its destination.
        names: one for each leaf.

    Raises:
        ValueError: no leaf; different numbers of leaves or of bytes in a row; rows of a
            destination overlap each other, or overlap another leaf.
    """

    __slots__ = ("_owners", "address", "entries", "is_apart", "n_destination", "n_source", "names")

    def __init__(
        self,
        destination: Sequence[Rows],
        source: Sequence[Rows],
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        self.names = _name_leaves(len(destination), len(source), names)
        for name, written, read in zip(self.names, destination, source, strict=True):
            _check_rows(name, written, read)
        self.is_apart = _check_leaves_are_apart(self.names, destination, source)
        self.entries: npt.NDArray[np.int64] = np.array(
            [
                (written.address, written.stride, read.address, read.stride, read.nbytes)
                for written, read in zip(destination, source, strict=True)
            ],
            np.int64,
        )
        self.entries.flags.writeable = False
        self.address: int = self.entries.__array_interface__["data"][0]
        self.n_destination = min(rows.n_rows for rows in destination)
        self.n_source = min(rows.n_rows for rows in source)
        self._owners: tuple[npt.NDArray[Any], ...] = ()

    @classmethod
    def of_arrays(
        cls, destination: Leaves, source: Leaves, *, names: Sequence[str] | None = None
    ) -> "RowTable":
        """Return the table of arrays in host memory, which it keeps alive.

        Args:
            destination: arrays [n, ...] whose rows are C-contiguous; their first stride is free.
            source: arrays [m, ...] with the same dtypes and rows of the same shapes.
            names: what errors call the leaves.

        Raises:
            TypeError: a leaf is no numpy.ndarray, or holds Python objects.
            ValueError: dtypes or shapes differ, a row is not contiguous, a destination is
                read-only, or anything that RowTable refuses.
        """
        names = _name_leaves(len(destination), len(source), names)
        for name, written, read in zip(names, destination, source, strict=True):
            _check_arrays(name, written, read)
        table = cls(
            [
                _locate(f"destination {name}", leaf)
                for name, leaf in zip(names, destination, strict=True)
            ],
            [_locate(f"source {name}", leaf) for name, leaf in zip(names, source, strict=True)],
            names=names,
        )
        table._owners = (*destination, *source)
        return table


def rows_at(
    address: int, shape: Sequence[int], strides: Sequence[int], itemsize: int
) -> Rows | None:
    """Return the rows of an array anywhere in memory; None where a row is not contiguous.

    Args:
        address: address of the first element, which is not the lowest address where a stride is
            negative.
        shape: at least one axis; the first one counts rows.
        strides: one for each axis, in bytes.
        itemsize: bytes in an element.
    """
    n_rows, *row_shape = shape
    nbytes = itemsize
    for length, stride in zip(reversed(row_shape), reversed(strides[1:]), strict=True):
        # NumPy leaves the stride of an axis open that has one element, or that has none beside it.
        if length > 1 and stride != nbytes and 0 not in row_shape:
            return None
        nbytes *= length
    # One row has no next one. Its stride may be anything, and must not spoil the alignment.
    return Rows(address, strides[0] if n_rows > 1 else 0, nbytes, n_rows)


def _name_leaves(n_written: int, n_read: int, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        names = [f"leaf {number}" for number in range(n_written)]
    if not n_written == n_read == len(names):
        raise ValueError(
            f"rows: {n_written} destination leaves, {n_read} source leaves and {len(names)} names, "
            "expected as many of each; take them in the same order from both trees"
        )
    if not n_written:
        raise ValueError("rows: no leaf, expected at least one")
    return tuple(names)


def _check_arrays(name: str, written: object, read: object) -> None:
    for side, leaf in (("destination", written), ("source", read)):
        if not isinstance(leaf, np.ndarray):
            raise TypeError(f"{side} {name}: {type(leaf).__name__}, expected numpy.ndarray")
        if leaf.dtype.hasobject:
            raise TypeError(
                f"{side} {name}: dtype {leaf.dtype}, expected numbers; "
                "the bytes of a Python object are a pointer and cannot be copied"
            )
        if leaf.ndim == 0:
            raise ValueError(f"{side} {name}: shape (), expected rows: at least one axis")
    assert isinstance(written, np.ndarray)
    assert isinstance(read, np.ndarray)
    if written.dtype != read.dtype:
        raise ValueError(
            f"{name}: dtype {read.dtype} into {written.dtype}, expected the same; "
            "rows are copied as bytes, convert one side with .astype"
        )
    if written.shape[1:] != read.shape[1:]:
        raise ValueError(
            f"{name}: rows of shape {read.shape[1:]} into {written.shape[1:]}, "
            "expected the same; the first axis counts rows"
        )
    if not written.flags.writeable:
        raise ValueError(f"destination {name}: read-only, expected writable memory")


def _locate(name: str, leaf: npt.NDArray[Any]) -> Rows:
    address = leaf.__array_interface__["data"][0]
    rows = rows_at(address, leaf.shape, leaf.strides, leaf.itemsize)
    if rows is None:
        raise ValueError(
            f"{name}: shape {leaf.shape} with strides {leaf.strides}, expected C-contiguous rows; "
            "the first stride is free, copy the array with .copy() where others are not"
        )
    return rows


def _check_rows(name: str, written: Rows, read: Rows) -> None:
    if written.nbytes != read.nbytes:
        raise ValueError(
            f"{name}: rows of {read.nbytes} bytes into {written.nbytes}, expected the same"
        )
    if written.n_rows > 1 and abs(written.stride) < written.nbytes:
        raise ValueError(
            f"destination {name}: rows of {written.nbytes} bytes, {written.stride} bytes from one "
            "to the next, expected rows that do not overlap; allocate it with numpy.empty"
        )


def _check_leaves_are_apart(
    names: Sequence[str], destination: Sequence[Rows], source: Sequence[Rows]
) -> bool:
    """Refuse what overlaps a destination; return False where it is only the leaf's own source."""
    sides = [(rows, number, "destination") for number, rows in enumerate(destination)]
    sides += [(rows, number, "source") for number, rows in enumerate(source)]
    is_apart = True
    for (rows, number, side), (other, other_number, other_side) in _overlapping(sides):
        if side == other_side == "source":
            continue
        if number != other_number:
            raise ValueError(
                f"{side} {names[number]}: overlaps {other_side} {names[other_number]}, expected "
                f"memory of its own: [{rows.begin:#x}, {rows.end:#x}) "
                f"and [{other.begin:#x}, {other.end:#x})"
            )
        is_apart = False
    return is_apart


def _overlapping(
    sides: Sequence[tuple[Rows, int, str]],
) -> Iterator[tuple[tuple[Rows, int, str], tuple[Rows, int, str]]]:
    """Yield the pairs that share a byte, or might.

    In the order of their addresses, only those need a closer look that begin before one ends.
    """
    ordered = sorted(sides, key=lambda side: side[0].begin)
    for at, side in enumerate(ordered):
        for other in ordered[at + 1 :]:
            if other[0].begin >= side[0].end:
                break
            if not _interleave(side[0], other[0]):
                yield side, other


def _interleave(rows: Rows, other: Rows) -> bool:
    """Return whether the rows of one lie in the gaps of the other, as two columns of a table do.

    Both lie on a grid with the greatest common divisor of their strides. Where their places on it
    share no byte, no rows do. (The reverse does not hold, where the strides differ.)
    """
    if 0 in (rows.nbytes, other.nbytes, rows.n_rows, other.n_rows):
        return True
    grid = math.gcd(rows.stride, other.stride)
    if grid == 0:
        return False
    offset = (other.address - rows.address) % grid
    return rows.nbytes <= offset and other.nbytes <= grid - offset


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
