"""A minibatch's rows, gathered for all leaves at once: each leaf by an index vector of its own.

As `rows`, but for rows that lie in two places: in a ring, or beside it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from parllel.kernels.memory import copy_1, copy_4, copy_8, copy_16, load_int64
from parllel.kernels.rows import copy_row
from parllel.kernels.targets import DeviceEntry, cuda, twin

ENTRY_NBYTES = 5 * 8  # of a table's integers for one leaf


class GatheredLeaf(NamedTuple):
    """An entry of the table: four addresses, and a size. Rows are contiguous everywhere."""

    destination: int
    source: int
    beside: int  # rows that belong to the source but lie elsewhere; 0 where there are none
    rows: int  # int64 [n_rows]: row i of the source; below 0, row -1 - i of what lies beside
    nbytes: int  # of a row


def read_gathered_leaf(table: int, number: int) -> GatheredLeaf:
    """Return an entry of the table at an address."""
    at = table + number * ENTRY_NBYTES
    return GatheredLeaf(
        load_int64(at),
        load_int64(at + 8),
        load_int64(at + 16),
        load_int64(at + 24),
        load_int64(at + 32),
    )


def find_row(leaf: GatheredLeaf, number: int) -> int:
    """Return the address of the row that becomes row `number` of the destination."""
    row = load_int64(leaf.rows + number * 8)
    return leaf.source + row * leaf.nbytes if row >= 0 else leaf.beside - (row + 1) * leaf.nbytes


def gather_row(leaf: GatheredLeaf, number: int, bits: int, lane: int, lanes: int) -> None:
    """Copy a lane's share of one row."""
    destination = leaf.destination + number * leaf.nbytes
    copy_row(destination, find_row(leaf, number), leaf.nbytes, bits, lane, lanes)


def gather_on_grid(table: int, n_rows: int) -> None:
    """Gather all rows. Grid (groups of rows, leaves), block (lanes of a row, rows of a group).

    Any grid with a row of blocks for each leaf gathers everything: groups go on where it ends.
    """
    leaf = read_gathered_leaf(table, cuda.blockIdx.y)
    bits = leaf.destination | leaf.source | leaf.beside | leaf.nbytes
    number = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    while number < n_rows:
        gather_row(leaf, number, bits, cuda.threadIdx.x, cuda.blockDim.x)
        number += cuda.gridDim.x * cuda.blockDim.y


def gather_words(leaf: GatheredLeaf, n_rows: int) -> None:
    """Gather rows of 1, 4, 8 or 16 bytes on a CPU. The compiler makes a loop for each size."""
    for number in range(n_rows):
        destination, source = leaf.destination + number * leaf.nbytes, find_row(leaf, number)
        if leaf.nbytes == 1:
            copy_1(destination, source)
        elif leaf.nbytes == 4:
            copy_4(destination, source)
        elif leaf.nbytes == 8:
            copy_8(destination, source)
        else:
            copy_16(destination, source)


def gather_in_turn(table: int, n_leaves: int, n_rows: int) -> None:
    """Gather all rows on a CPU, leaf by leaf."""
    for leaf_number in range(n_leaves):
        leaf = read_gathered_leaf(table, leaf_number)
        if leaf.nbytes in (1, 4, 8, 16):
            gather_words(leaf, n_rows)
        else:
            for number in range(n_rows):
                gather_row(leaf, number, 0, 0, 1)


_PARTS = (copy_row, read_gathered_leaf, find_row, gather_row)
DEVICE = DeviceEntry(gather_on_grid, "void(int64, int64)", _PARTS)


@functools.cache
def compiled_gather() -> Callable[[int, int, int], None]:
    """Return `gather_in_turn` for rows of host memory, compiled. It checks no address.

    The first call compiles, or loads what an earlier process compiled.
    """
    return twin(gather_in_turn, "void(int64, int64, int64)", parts=(*_PARTS, gather_words))
