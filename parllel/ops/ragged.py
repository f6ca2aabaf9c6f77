"""RaggedGather: gathers of elements of different length, prepared once and run many times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from parllel.cuda import AnyArray, DeviceArray
from parllel.kernels.ragged import DEVICE, RaggedLeaf, RaggedTable, check_ragged, gather_ragged
from parllel.ops.copy_grid import CopyGrid, count_lanes, split_row
from parllel.ops.sides import (
    AnyIndex,
    address_of,
    common_side,
    fill_rows,
    index_arguments,
    is_on_device,
    to_side,
)
from parllel.ops.stack_gather import RowSource, check_apart, rows_of


class PackedRows(NamedTuple):
    """Memory of elements that a gather packs.

    Args:
        values: [n * capacity, *item_shape], C-contiguous: room for n elements of any length. The
            rows behind the last element keep what they have.
        offsets: int64 [n + 1], C-contiguous: where each element begins, and the last one ends.
    """

    values: AnyArray
    offsets: AnyArray


class RaggedGather:
    """A gather of elements of different length, and of plain rows beside them: all leaves at once.

    Of arrays of NumPy, elements are packed when `run` returns. Of arrays of CuPy, over device
    memory or mapped host memory, each run is one launch in the caller's current stream, which reads
    the lengths: the host waits for nothing, and does not know how many items there are. The
    constructor copies a table of the leaves to the device in the stream that is current: a run in
    another stream must wait for that copy.

    >>> slots, lengths = np.arange(12.0).reshape(4, 3), np.array([1, 0, 3, 2])
    >>> packed = PackedRows(np.zeros(9), np.zeros(4, np.int64))
    >>> RaggedGather([RowSource(slots, lengths=lengths)], [packed]).run(np.array([2, 1, 0]))
    >>> packed.offsets.tolist(), packed.values[:4].tolist()
    ([0, 3, 3, 4], [6.0, 7.0, 8.0, 0.0])

    Args:
        sources: for each leaf the slots with their lengths, or rows of one length: no stacks, and
            nothing that is shifted.
        outputs: for each leaf the memory that is written: `PackedRows`, or an array [n, ...] for
            rows of one length.

    Raises:
        TypeError: some arrays are NumPy's and some are CuPy's.
        ValueError: an output has another dtype or other items than its source, is not contiguous,
            or shares memory with what is read or written beside it.
    """

    def __init__(
        self, sources: Sequence[RowSource], outputs: Sequence[PackedRows | AnyArray]
    ) -> None:
        read = [array for source in sources for array in source.arrays]
        written = [
            array
            for output in outputs
            for array in (output if isinstance(output, PackedRows) else (output,))
        ]
        side = common_side("ragged", (*read, *written))
        self._arrays = read, written  # a table of addresses keeps nothing alive
        check_apart(written, read)
        pairs = list(zip(sources, outputs, strict=True))
        self._n_outputs = min(_count_outputs(source, output) for source, output in pairs)
        self._offsets = [each.offsets for each in outputs if isinstance(each, PackedRows)]
        leaves = [_locate(source, output) for source, output in pairs]
        n_rows = min(len(source) for source in sources)
        self._device_table: DeviceArray | None = None  # None for arrays of NumPy
        if side == "gpu":
            leaves = [part for leaf in leaves for part in _split(leaf)]
            self._grid = CopyGrid([count_lanes(leaf.nbytes, _bits_of(leaf)) for leaf in leaves])
            leaves = [leaves[number] for number in self._grid.order]
        self._table = RaggedTable(leaves, n_rows)
        if side == "gpu":
            self._device_table = to_side(self._table.entries, side)

    def run(self, index: AnyIndex) -> None:
        """Gather the elements of the rows of an index to the beginning of the outputs.

        Args:
            index: range, or integers [k]. For arrays of CuPy it may also be a contiguous device
                array, int64 [k]. It is not checked then, so that a row outside a leaf reads other
                memory. Integers of the host are copied to the device first.

        Raises:
            IndexError, TypeError, ValueError: as `kernels.ragged.gather_ragged`; nothing was
                written. On a GPU a length that is none of a slot counts as the nearest that is.
            ValueError: the outputs have room for fewer elements than the index has rows.
        """
        if len(index) > self._n_outputs:
            raise ValueError(
                f"ragged: got {len(index)} rows, expected at most {self._n_outputs}, for which the"
                " outputs have room"
            )
        if self._device_table is None:
            gather_ragged(self._table, index)
            return
        if not is_on_device(index):
            check_ragged(self._table, index)
        n_rows = len(index)
        if n_rows:
            arguments = [self._device_table, np.int64(n_rows), *index_arguments(index)]
            self._grid.launch(DEVICE.name, n_rows, arguments)
        else:
            for offsets in self._offsets:
                fill_rows((0,), 0, out=offsets)


def _count_outputs(source: RowSource, output: PackedRows | AnyArray) -> int:
    """Return how many elements an output has room for, after all of it was checked."""
    values = output.values if isinstance(output, PackedRows) else output
    is_jagged = source.lengths is not None
    if is_jagged != isinstance(output, PackedRows):
        raise ValueError(
            "ragged: elements of different length are packed, and rows of one length are not;"
            f" got {type(output).__name__}"
        )
    if source.is_first is not None:
        raise ValueError("ragged: got stacks of frames, expected elements or rows; see StackGather")
    _check_beside(source)
    shape = source.frames.shape[2:] if is_jagged else source.frames.shape[1:]
    if values.dtype != source.dtype or values.shape[1:] != shape:
        raise ValueError(
            f"ragged: got an output of dtype {values.dtype} and items of shape {values.shape[1:]},"
            f" expected {source.dtype} and {shape}"
        )
    arrays = {"an output": values}
    n_elements = len(values)
    if isinstance(output, PackedRows):
        arrays["offsets"] = output.offsets
        if output.offsets.dtype != np.int64 or output.offsets.ndim != 1:
            raise ValueError(f"ragged: got offsets of {output.offsets.dtype}, expected int64 [n]")
        capacity = source.frames.shape[1]
        n_elements = len(output.offsets) - 1
        if len(values) < n_elements * capacity:
            raise ValueError(
                f"ragged: got room for {len(values)} items, expected {n_elements * capacity}: that"
                f" of {n_elements} elements of {capacity}"
            )
    for name, array in arrays.items():
        if not array.flags.c_contiguous:
            raise ValueError(f"ragged: got {name} of strides {array.strides}, expected contiguous")
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            raise ValueError(f"ragged: {name} is read-only, expected writable memory")
    return n_elements


def _check_beside(source: RowSource) -> None:
    """Raise unless the rows beside a source are like its own: what follows them is other memory."""
    beside, lengths = source.beside, source.beside_lengths
    if beside is not None and (
        (beside.dtype, beside.shape[1:]) != (source.dtype, source.frames.shape[1:])
        or (lengths is None) != (source.lengths is None)
    ):
        raise ValueError(
            f"ragged: got rows beside of dtype {beside.dtype}, shape {beside.shape[1:]}, expected"
            f" {source.dtype}, {source.frames.shape[1:]}, and lengths where the others have them"
        )
    for rows, counts in ((source.frames, source.lengths), (beside, lengths)):
        if counts is not None and (rows is None or counts.shape != (len(rows),)):
            raise ValueError(
                f"ragged: got lengths of shape {counts.shape}, expected one for each row"
            )


def _locate(source: RowSource, output: PackedRows | AnyArray) -> RaggedLeaf:
    """Return where all of a leaf lies, and is written."""
    slots = rows_of(source.frames)
    capacity = 1 if source.lengths is None else source.frames.shape[1]
    values, offsets = output if isinstance(output, PackedRows) else (output, None)
    item_nbytes = source.frames.itemsize * math.prod(values.shape[1:])
    return RaggedLeaf(
        address_of(values),
        address_of(offsets),
        slots.address,
        slots.stride,
        item_nbytes,
        capacity,
        address_of(source.lengths),
        address_of(source.rows),
        address_of(source.beside),
        address_of(source.beside_lengths),
        0,
        slots.nbytes,
    )


def _split(leaf: RaggedLeaf) -> list[RaggedLeaf]:
    """Return the parts of long slots, which different threads copy."""
    return [leaf._replace(begin=at, nbytes=length) for at, length in split_row(leaf.nbytes)]


def _bits_of(leaf: RaggedLeaf) -> int:
    """Return a number whose low bits are 0 as far as they are in every item's address."""
    return leaf.destination | leaf.source | leaf.stride | leaf.beside | leaf.item_nbytes
