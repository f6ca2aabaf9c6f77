"""StackGather: gathers of stacks from single frames, prepared once and run many times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.cuda import AnyArray, DeviceArray
from parllel.kernels.frames import (
    bits_of,
    check_stacks,
    gather_stacks,
)
from parllel.kernels.frames_on_grid import DEVICE, SHIFTED
from parllel.kernels.image_shift import NO_IMAGE, Image
from parllel.kernels.row_table import Rows, rows_at
from parllel.kernels.stack_table import Stacks, StackTable
from parllel.ops.copy_grid import CopyGrid, count_lanes
from parllel.ops.sides import (
    AnyIndex,
    address_of,
    common_side,
    index_arguments,
    is_on_device,
    to_side,
)


@dataclass(frozen=True, slots=True)
class RowSource:
    """Single frames that stacks are gathered from; without flags, plain rows.

    A stack is made of a row's frame and of those before it, as far as the episode goes back. A row
    may have several stacks, N of them: one for each agent, whose episodes begin apart.

    Args:
        frames: [n, ...], C-contiguous, a frame for each row; [n, N, ...] of several stacks. The
            `stack - 1` time steps before row 0 lie before it in memory. Plain rows may have gaps
            between them.
        is_first: bool [n] or [n, N], C-contiguous. Whether a frame is the first one of an episode.
            As many flags lie before it. None for plain rows.
        n_columns: rows of a time step; row i - n_columns is one step earlier.
        stack: frames of a stack, 1 or more.
        blank: [1, ...], the frame that fills a stack before its episode's beginning; None where
            the episode's first frame does.
        rows: int64 [k], C-contiguous. Numbers of rows, among which an index picks; without it an
            index names rows itself. A number -1 - s stands for s of those beside the rows. The
            numbers are not checked.
        beside: [m, ...] or [m, N, ...], C-contiguous. Frames that follow others of the rows, and
            have no row.
        beside_rows: int64 [m], C-contiguous. The row whose frames come before; None for plain rows.
        image: how each frame is shifted at random while it is gathered; by default not at all.
        lengths: int64 [n], C-contiguous. How many items at the beginning of each row are its
            element, [n_items, ...] of [capacity, ...]; None for rows of one length. Such rows are
            gathered by a `RaggedGather`.
        beside_lengths: int64 [m], C-contiguous, the same of the rows beside.
    """

    frames: AnyArray
    is_first: AnyArray | None = None
    n_columns: int = 1
    stack: int = 1
    blank: AnyArray | None = None
    rows: AnyArray | None = None
    beside: AnyArray | None = None
    beside_rows: AnyArray | None = None
    image: Image = NO_IMAGE
    lengths: AnyArray | None = None
    beside_lengths: AnyArray | None = None

    def __getitem__(self, rows: slice) -> RowSource:
        """Return some of the rows that follow each other; `rows` has no step."""
        is_first = None if self.is_first is None else self.is_first[rows]
        lengths = None if self.lengths is None else self.lengths[rows]
        return replace(self, frames=self.frames[rows], is_first=is_first, lengths=lengths)

    def __len__(self) -> int:
        """Return the number that an index must be below."""
        return len(self.frames if self.rows is None else self.rows)

    @property
    def is_plain(self) -> bool:
        """Whether these are rows as they lie in memory, and nothing else."""
        is_gathered_as_it_is = self.image == NO_IMAGE and self.rows is None
        is_gathered_as_it_is &= self.lengths is None
        return is_gathered_as_it_is and self.is_first is None and self.beside is None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all stacks, [n, stack, ...] or [n, N, stack, ...]; of plain rows [n, ...]."""
        if self.is_first is None:
            return (len(self), *self.frames.shape[1:])
        n_axes = self.is_first.ndim
        return (len(self), *self.is_first.shape[1:], self.stack, *self.frames.shape[n_axes:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        dtype: np.dtype[Any] = self.frames.dtype
        return dtype

    @property
    def arrays(self) -> list[AnyArray]:
        """The arrays that a gather reads."""
        optional = (
            *(self.is_first, self.blank, self.rows, self.beside, self.beside_rows),
            *(self.lengths, self.beside_lengths),
        )
        return [self.frames, *(array for array in optional if array is not None)]

    def locate(self, destination: int) -> Stacks:
        """Return where all of it lies, for stacks that are written from an address on."""
        rows = rows_of(self.frames)
        n_stacks = 1 if self.is_first is None else math.prod(self.is_first.shape[1:])
        parts = max(n_stacks, 1)  # there are none of agents where there is no agent: no byte, too
        return Stacks(
            len(self),
            destination,
            rows.address,
            rows.stride // parts,
            rows.nbytes // parts,
            self.stack,
            self.n_columns * n_stacks,
            address_of(self.is_first),
            address_of(self.blank),
            address_of(self.rows),
            address_of(self.beside),
            address_of(self.beside_rows),
            n_stacks,
            self.image,
        )


class StackGather:
    """A gather of stacks, and of plain rows beside them: all leaves of a tree at once.

    Of arrays of NumPy, stacks are gathered when `run` returns. Of arrays of CuPy, over device
    memory or mapped host memory, each run is one launch in the caller's current stream. The
    constructor copies a table of the leaves to the device in the stream that is current: a run in
    another stream must wait for that copy.

    >>> frames, is_first = np.arange(5.0).reshape(5, 1), np.array([True, False, False, True, False])
    >>> stacks = np.zeros((2, 3, 1))
    >>> StackGather([RowSource(frames, is_first, stack=3)], [stacks]).run(np.array([2, 4]))
    >>> stacks[:, :, 0].tolist()
    [[0.0, 1.0, 2.0], [3.0, 3.0, 4.0]]

    Args:
        sources: for each leaf the frames or rows to read.
        outputs: for each leaf a C-contiguous array [n, ...] of stacks or rows to write. None: there
            is one leaf, and each run is given its output.

    Raises:
        TypeError: some arrays are NumPy's and some are CuPy's.
        ValueError: an output has another dtype or other rows than its source, is not contiguous,
            or shares memory with what is read or written beside it.
    """

    def __init__(
        self, sources: Sequence[RowSource], outputs: Sequence[AnyArray] | None = None
    ) -> None:
        written = [] if outputs is None else list(outputs)
        self._read = [array for source in sources for array in source.arrays]
        side = common_side("stacks", (*self._read, *written))
        for source, output in zip(sources, written, strict=outputs is not None):
            _check_output(output, source)
        check_apart(written, self._read)
        self._sources, self._outputs = sources, written  # a table of addresses keeps nothing alive
        self._n_outputs = min(map(len, written), default=0)  # rows of the shortest output
        addresses = [0] if outputs is None else [address_of(output) for output in written]
        leaves = [
            source.locate(address) for source, address in zip(sources, addresses, strict=True)
        ]
        self._table = StackTable(leaves)
        self._device_table: DeviceArray | None = None  # None for arrays of NumPy
        if side == "gpu":
            self._grid = CopyGrid([count_lanes(leaf.nbytes, bits_of(leaf)) for leaf in leaves])
            self._device_table = to_side(self._table.entries[self._grid.order], side)
            self._most_frames = max(leaf.n_stacks * leaf.n_frames for leaf in leaves)

    def run(
        self, index: AnyIndex, *, out: AnyArray | None = None, seed: AnyArray | None = None
    ) -> None:
        """Gather the stacks of the rows of an index to the outputs' first rows.

        Args:
            index: range, or integers [k]. For arrays of CuPy it may also be a contiguous device
                array, int64 [k]. It is not checked then, so that a row outside a leaf reads other
                memory. Integers of the host are copied to the device first.
            out: C-contiguous array [k, ...], where the outputs are not given to all runs.
            seed: int64 [3], of the same library: the two numbers of a key, and the number of the
                minibatch, for random shifts of images. It is read when the rows are gathered.

        Raises:
            IndexError, TypeError: as `kernels.frames.gather_stacks`; nothing was written.
            ValueError: the outputs have fewer rows than the index, or `out` does not fit.
        """
        if self._table.is_shifted and seed is None:
            raise ValueError("stacks: got images to shift and no seed, expected one")
        n_outputs, out_address = self._n_outputs, 0
        if out is not None:
            _check_output(out, self._sources[0])
            check_apart([out], self._read)
            n_outputs, out_address = len(out), address_of(out)
        if len(index) > n_outputs:
            raise ValueError(f"stacks: got {len(index)} rows, expected at most {n_outputs}")
        if self._device_table is None:
            gather_stacks(self._table, index, out_address=out_address, seed=address_of(seed))
            return
        if not is_on_device(index):
            check_stacks(self._table, index)
        if len(index):
            self._launch(len(index), index, np.int64(0) if out is None else out, seed)

    def _launch(self, n_rows: int, index: AnyIndex, out: AnyArray, seed: AnyArray | None) -> None:
        arguments = [self._device_table, out, np.int64(n_rows), *index_arguments(index)]
        arguments.append(np.int64(self._most_frames))
        name = DEVICE.name
        if self._table.is_shifted:
            name = SHIFTED.name
            arguments.append(seed)
        self._grid.launch(name, n_rows * self._most_frames, arguments)


def as_range(numbers: NDArray[np.int64]) -> range | NDArray[np.int64]:
    """Return numbers as a range where they are one: a GPU needs no copy of it."""
    if len(numbers) < 2:
        first = int(numbers[0]) if len(numbers) else 0
        return range(first, first + len(numbers))
    first, step = int(numbers[0]), int(numbers[1] - numbers[0])
    if step == 0 or (np.diff(numbers) != step).any():
        return numbers
    return range(first, first + step * len(numbers), step)


def _check_output(output: AnyArray, source: RowSource) -> None:
    if output.dtype != source.dtype or output.shape[1:] != source.shape[1:]:
        raise ValueError(
            f"stacks: got an output of dtype {output.dtype} and rows of shape {output.shape[1:]},"
            f" expected {source.dtype} and {source.shape[1:]}"
        )
    if not output.flags.c_contiguous:
        raise ValueError(f"stacks: got an output of strides {output.strides}, expected contiguous")
    if isinstance(output, np.ndarray) and not output.flags.writeable:
        raise ValueError("stacks: got a read-only output, expected writable memory")


def check_apart(written: Sequence[AnyArray], read: Sequence[AnyArray]) -> None:
    """Refuse an output that shares memory with another one, or with what is read."""
    taken = [rows_of(array) for array in read]
    for output in map(rows_of, written):
        if any(output.begin < other.end and other.begin < output.end for other in taken):
            raise ValueError("stacks: an output shares memory with another array, expected its own")
        taken.append(output)


def rows_of(array: AnyArray) -> Rows:
    """Return where the rows of an array lie.

    Raises:
        ValueError: a row is not contiguous.
    """
    n_rows, *row_shape = array.shape
    if array.flags.c_contiguous:  # its strides may be anything where it is empty
        nbytes = array.itemsize * math.prod(row_shape)
        return Rows(address_of(array), nbytes, nbytes, n_rows)
    rows = rows_at(address_of(array), array.shape, array.strides, array.itemsize)
    if rows is None:
        raise ValueError(
            f"stacks: strides {array.strides} of shape {array.shape}, expected C-contiguous rows"
        )
    return rows
