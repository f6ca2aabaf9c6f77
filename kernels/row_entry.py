"""Entries of the table of `rows`, written by a GPU: a captured launch has them as its arguments."""

from parllel.kernels.addresses import store_int64
from parllel.kernels.rows import ENTRY_NBYTES
from parllel.kernels.targets import DeviceEntry, cuda


def write_entry_on_grid(
    table: int,
    number: int,
    destination: int,
    destination_stride: int,
    source: int,
    source_stride: int,
    nbytes: int,
) -> None:
    """Write an entry of a table, `rows.Leaf`; of all threads the first one does.

    Args:
        table: address of the table.
        number: number of the entry.
        destination, destination_stride, source, source_stride, nbytes: the leaf's.
    """
    if cuda.blockIdx.x == 0 and cuda.threadIdx.x == 0:
        at = table + number * ENTRY_NBYTES
        store_int64(at, destination)
        store_int64(at + 8, destination_stride)
        store_int64(at + 16, source)
        store_int64(at + 24, source_stride)
        store_int64(at + 32, nbytes)


DEVICE = DeviceEntry(
    "write_row_entry", write_entry_on_grid, f"void({', '.join(['int64'] * 7)})", ()
)
