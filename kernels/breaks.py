"""Where the episodes of a ring break off: a bit for each step, from which their lengths are found.

A step is **open** where it is valid and its episode goes on after it; else it is a **break**. To
look for the next break by the flags of steps takes a line of memory for each few of them. So the
breaks are kept as bits, too: those of 64 rows of a column in one integer, which are looked at at
once. They are marked anew whenever flags were written.
"""

from parllel.kernels.addresses import load_byte, load_int64, store_int64
from parllel.kernels.instructions import N_BITS, count_high_zeros, count_low_zeros, prefetch
from parllel.kernels.targets import CpuKernel, DeviceEntry, cuda
from parllel.kernels.transitions import RingTable, read_ring_table

_SHIFT = 6  # N_BITS is 2 to this: rows are never below 0, so no division is needed


def count_integers(n_rows: int) -> int:
    """Return how many integers the bits of a column's rows take."""
    return -(-n_rows >> _SHIFT)


def is_open(table: RingTable, place: int) -> int:
    """Return 1 where a step is open by its flags, else 0; without a branch."""
    flags = load_byte(table.terminated + place) | load_byte(table.truncated + place)
    return (1 - min(flags, 1)) * min(load_byte(table.valid + place * table.valid_stride), 1)


def locate_breaks(table: RingTable, row: int, column: int) -> int:
    """Return the address of the integer that has the bit of a row: bit `row % N_BITS`."""
    return table.breaks + ((row >> _SHIFT) * table.width + column) * 8


def load_breaks(table: RingTable, row: int, column: int) -> int:
    """Return the integer that has the bit of a row."""
    return load_int64(locate_breaks(table, row, column))


def is_break(table: RingTable, row: int, column: int) -> bool:
    """Return whether a step is a break."""
    return (load_breaks(table, row, column) >> (row & (N_BITS - 1))) & 1 != 0


def count_open(table: RingTable, row: int, column: int, most: int) -> int:
    """Return how many steps are open, one after the other from a row on, and not more than `most`.

    Args:
        table: the ring.
        row, column: where the first step is.
        most: up to how many are counted. Steps that are not there are open, or not.
    """
    count, is_same = 0, True
    while is_same and count < most:
        bit = row & (N_BITS - 1)
        n_here = min(N_BITS - bit, table.n_rows - row)
        # The sign fills up what is shifted in, behind the last row of the integer.
        n_open = min(n_here, count_low_zeros(load_breaks(table, row, column) >> bit))
        count += n_open
        is_same = n_open == n_here
        row = row + n_here if row + n_here < table.n_rows else 0
    return min(count, most)


def count_open_before(table: RingTable, row: int, column: int, most: int) -> int:
    """Return how many steps are open, one before the other back from the one before a row."""
    count, is_same = 0, True
    while is_same and count < most:
        row = row - 1 if row > 0 else table.n_rows - 1
        n_here = (row & (N_BITS - 1)) + 1
        zeros = count_high_zeros(load_breaks(table, row, column) << (N_BITS - n_here))
        n_open = min(n_here, zeros)
        count += n_open
        is_same = n_open == n_here
        row -= n_here - 1
    return min(count, most)


def prefetch_flags(table: RingTable, place: int) -> None:
    """Let a CPU bring what is read of a break."""
    prefetch(table.terminated + place)
    prefetch(table.truncated + place)
    prefetch(table.valid + place * table.valid_stride)
    prefetch(table.final_slot + place * 4)


def mark_column(table: RingTable, begin: int, end: int, integer: int, column: int) -> None:
    """Mark the breaks among the rows from `begin` to `end` that have their bits in one integer."""
    first = integer * N_BITS
    address = table.breaks + (integer * table.width + column) * 8
    breaks, looked_at = 0, 0
    for row in range(max(begin, first), min(end, first + N_BITS)):
        breaks |= (1 - is_open(table, row * table.width + column)) << (row - first)
        looked_at |= 1 << (row - first)
    store_int64(address, (load_int64(address) & ~looked_at) | breaks)


def mark_breaks_on_grid(ring_table: int, begin: int, end: int, n_items: int) -> None:
    """Mark the breaks of rows: one thread for each integer of each column, which writes it alone.

    A CPU runs it as the only thread of a grid.
    """
    table = read_ring_table(ring_table)
    item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_items:
        integer = (begin >> _SHIFT) + item // table.width
        mark_column(table, begin, end, integer, item % table.width)
        item += cuda.gridDim.x * cuda.blockDim.x


PARTS = (is_open, locate_breaks, load_breaks, is_break, count_open, count_open_before)
DEVICE = DeviceEntry(
    "mark_breaks",
    mark_breaks_on_grid,
    "void(int64, int64, int64, int64)",
    (read_ring_table, is_open, mark_column),
)
# Compiled, it checks nothing.
ON_CPU = CpuKernel(mark_breaks_on_grid, DEVICE.signature, parts=DEVICE.parts)
