"""StackGather: gathers of stacks from single frames, prepared once and run many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays.row_index import is_on_device, kernel_arguments
from parllel.kernels.frames import check_stacks, gather_stacks
from parllel.kernels.row_index import Index
from parllel.kernels.row_table import rows_at
from parllel.kernels.stack_table import Stacks, StackTable

AnyArray: TypeAlias = Any  # numpy.ndarray or cupy.ndarray
AnyIndex: TypeAlias = Index | Any  # or a device array, int64 [n]

_WORD = 16  # bytes of one access
_THREADS = 256  # of a block: allowed on every GPU, not tuned on one yet
_MOST_GROUPS = 65_535  # the kernel goes on where the grid ends


@dataclass(frozen=True, slots=True)
class FrameSource:
    """Single frames that stacks are gathered from.

    Args:
        frames: [n, ...], C-contiguous, a frame for each row. The `stack - 1` time steps before row
            0 lie before it in memory.
        is_first: bool [n], C-contiguous. Whether a row's frame is the first one of an episode. As
            many flags lie before it.
        n_columns: rows of a time step; row i - n_columns is one step earlier.
        stack: frames of a stack, 1 or more.
        blank: [1, ...], the frame that fills a stack before its episode's beginning; None where the
            episode's first frame does.
    """

    frames: AnyArray
    is_first: AnyArray
    n_columns: int
    stack: int
    blank: AnyArray | None = None

    def __getitem__(self, rows: slice) -> FrameSource:
        """Return the rows from another row on; `rows` has no other end and no step."""
        return replace(self, frames=self.frames[rows], is_first=self.is_first[rows])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all stacks: [n, stack, ...]."""
        n_rows, *frame_shape = self.frames.shape
        return (n_rows, self.stack, *frame_shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        dtype: np.dtype[Any] = self.frames.dtype
        return dtype


class StackGather:
    """A gather of stacks, and of plain rows beside them: all leaves of a tree at once.

    The arrays are NumPy's, and stacks are gathered when `run` returns; or all of them are CuPy's,
    over device memory or mapped host memory, and each run is one launch in the caller's current
    stream. The table of leaves goes to the device here, once, in the stream that is current: who
    runs in another one orders it behind that.

    Args:
        sources: for each leaf the frames, or an array [m, ...] of plain rows.
        outputs: for each leaf a C-contiguous array [n, ...] of stacks or rows to write. None: there
            is one leaf, and each run is given its output.

    Raises:
        TypeError: some arrays are NumPy's and some are CuPy's.
        ValueError: an output has another dtype or other rows than its source, is not contiguous,
            or shares memory with what is read or written beside it.
    """

    def __init__(
        self,
        sources: Sequence[FrameSource | AnyArray],
        outputs: Sequence[AnyArray] | None = None,
    ) -> None:
        self._owners = [_arrays_of(source) for source in sources]
        self._like = sources[0]
        self._is_on_host = self._find_side(*self._owners, outputs or [])
        if outputs is not None:
            for source, output in zip(sources, outputs, strict=True):
                _check_output(output, source)
        _check_apart(outputs or [], self._owners)
        addresses = [0] if outputs is None else [_address(output) for output in outputs]
        self._outputs = outputs  # kept alive
        self._n_outputs = min((len(output) for output in outputs or []), default=0)
        self._table = StackTable([_locate(*pair) for pair in zip(sources, addresses, strict=True)])
        self._device_table: AnyArray = None
        if not self._is_on_host:
            self._device_table = cuda.to_device(self._table.entries)
        longest = max(entry[3] for entry in self._table.entries.tolist())
        self._most_frames = max(entry[4] for entry in self._table.entries.tolist())
        self._lanes = min(_THREADS, 1 << max(0, -(-longest // _WORD) - 1).bit_length())

    @staticmethod
    def _find_side(*groups: Sequence[AnyArray]) -> bool:
        sides = {isinstance(array, np.ndarray) for group in groups for array in group}
        if len(sides) > 1:
            raise TypeError("stacks: got arrays of NumPy and of CuPy, expected one kind")
        return sides == {True}

    def run(self, index: AnyIndex, *, out: AnyArray | None = None) -> None:
        """Gather the stacks of the rows of an index to the outputs' first rows.

        Args:
            index: range, or integers [k]. Of arrays of CuPy it may be a contiguous device array,
                int64 [k], too: then it is not checked, and a row outside a leaf is read from
                somewhere else. Integers of the host are copied to the device first.
            out: C-contiguous array [k, ...], where the outputs are not given to all runs.

        Raises:
            IndexError, TypeError: as `kernels.frames.gather_stacks`; nothing was written.
            ValueError: the outputs have fewer rows than the index, or `out` does not fit.
        """
        n_outputs = self._n_outputs
        if out is not None:
            _check_output(out, self._like)
            _check_apart([out], self._owners)
            n_outputs = len(out)
        if len(index) > n_outputs:
            raise ValueError(f"stacks: got {len(index)} rows, expected at most {n_outputs}")
        if self._is_on_host:
            gather_stacks(self._table, index, out_address=0 if out is None else _address(out))
            return
        if not is_on_device(index):
            check_stacks(self._table, index)
        if len(index):
            self._launch(len(index), index, np.int64(0) if out is None else out)

    def _launch(self, n_rows: int, index: AnyIndex, out: AnyArray) -> None:
        per_block = _THREADS // self._lanes
        groups = min(-(-n_rows * self._most_frames // per_block), _MOST_GROUPS)
        cuda.launch(
            "frames",
            (groups, len(self._table.entries)),
            (self._lanes, per_block),
            [self._device_table, out, np.int64(n_rows), *kernel_arguments(index)],
        )


def as_range(numbers: NDArray[np.int64]) -> range | NDArray[np.int64]:
    """Return numbers as a range where they are one: a GPU needs no copy of it."""
    if len(numbers) < 2:
        first = int(numbers[0]) if len(numbers) else 0
        return range(first, first + len(numbers))
    first, step = int(numbers[0]), int(numbers[1] - numbers[0])
    if step == 0 or (np.diff(numbers) != step).any():
        return numbers
    return range(first, first + step * len(numbers), step)


def _arrays_of(source: FrameSource | AnyArray) -> list[AnyArray]:
    if not isinstance(source, FrameSource):
        return [source]
    blank = [] if source.blank is None else [source.blank]
    return [source.frames, source.is_first, *blank]


def _locate(source: FrameSource | AnyArray, destination: int) -> Stacks:
    frames = source.frames if isinstance(source, FrameSource) else source
    rows = rows_at(_address(frames), frames.shape, frames.strides, frames.itemsize)
    assert rows is not None, "spans have been found"
    if not isinstance(source, FrameSource):
        return Stacks(destination, rows.address, rows.stride, rows.nbytes, 1, 1, 0, 0, rows.n_rows)
    return Stacks(
        destination=destination,
        source=rows.address,
        stride=rows.nbytes,  # that of one row is 0, and rows before it are read too
        nbytes=rows.nbytes,
        n_frames=source.stack,
        n_columns=source.n_columns,
        is_first=_address(source.is_first),
        blank=0 if source.blank is None else _address(source.blank),
        n_rows=rows.n_rows,
    )


def _check_output(output: AnyArray, source: FrameSource | AnyArray) -> None:
    if output.dtype != source.dtype or output.shape[1:] != source.shape[1:]:
        raise ValueError(
            f"stacks: got an output of dtype {output.dtype} and rows of shape {output.shape[1:]},"
            f" expected {source.dtype} and {source.shape[1:]}"
        )
    if not output.flags.c_contiguous:
        raise ValueError(f"stacks: got an output of strides {output.strides}, expected contiguous")
    if isinstance(output, np.ndarray) and not output.flags.writeable:
        raise ValueError("stacks: got a read-only output, expected writable memory")


def _check_apart(outputs: Sequence[AnyArray], owners: Sequence[Sequence[AnyArray]]) -> None:
    """Refuse an output that shares memory with another one, or with what is read."""
    read = [_span(array) for group in owners for array in group]
    written: list[tuple[int, int]] = []
    for output in outputs:
        begin, end = _span(output)
        if any(
            begin < other_end and other_begin < end for other_begin, other_end in written + read
        ):
            raise ValueError("stacks: an output shares memory with another array, expected its own")
        written.append((begin, end))


def _span(array: AnyArray) -> tuple[int, int]:
    """Return the addresses at which the rows of an array begin and end."""
    rows = rows_at(_address(array), array.shape, array.strides, array.itemsize)
    if rows is None:
        raise ValueError(
            f"stacks: strides {array.strides} of shape {array.shape}, expected C-contiguous rows"
        )
    return rows.begin, rows.end


def _address(array: AnyArray) -> int:
    address: int
    if isinstance(array, np.ndarray):
        address = array.__array_interface__["data"][0]
    else:
        address = array.data.ptr
    return address
