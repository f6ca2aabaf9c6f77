"""How kernels are launched: the sizes of blocks and grids, and the checks before a launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from parllel import cuda
from parllel.cuda import AnyArray, DeviceArray

# These sizes are allowed on every GPU, and not tuned on one yet.
WARP = 32
THREADS = 256  # of a block whose threads have neighbouring words
SERIAL_THREADS = WARP  # of a block whose threads have long work each: spread far over the GPU
ITEM_THREADS = 128  # of a block whose threads have an item of a minibatch each
MOST_BLOCKS = 65_535  # on an axis; the kernels go on where the grid ends
WORD = 16  # bytes of the largest access


def check_device_layout(arrays: Mapping[str, AnyArray]) -> None:
    """Raise unless all arrays are CuPy's and C-contiguous.

    Raises:
        TypeError: one is no array of CuPy.
        ValueError: one is not C-contiguous.
    """
    for name, array in arrays.items():
        if not hasattr(getattr(array, "data", None), "ptr"):
            raise TypeError(
                f"{name}: {type(array).__name__}, expected cupy.ndarray; an Array gives one with"
                " to_cupy()"
            )
        if not array.flags.c_contiguous:
            raise ValueError(
                f"{name}: strides {array.strides}, expected C-contiguous; copy an input with"
                " .copy(), allocate an output with cupy.empty"
            )


def check_device_outputs(arrays: Mapping[str, DeviceArray], *outputs: str) -> None:
    """Raise ValueError if an output shares a byte with another array; outputs are names."""
    extents = {name: (array.data.ptr, array.nbytes) for name, array in arrays.items()}
    for output in outputs:
        begin, nbytes = extents[output]
        for name, (other, other_nbytes) in extents.items():
            if name != output and begin < other + other_nbytes and other < begin + nbytes:
                raise ValueError(
                    f"{output}: overlaps {name}, expected memory of its own; allocate it with"
                    " cupy.empty"
                )


def count_lanes(nbytes: int) -> int:
    """Return how many threads share a row of some bytes: a power of two, at most a block."""
    n_words = -(-nbytes // WORD)
    return min(THREADS, 1 << max(0, n_words - 1).bit_length())


def launch_leaves(
    name: str, n_rows: int, n_leaves: int, lanes: int, arguments: Sequence[np.generic | DeviceArray]
) -> None:
    """Launch a kernel whose grid is (groups of rows, leaves), and whose block is (lanes, a group).

    Args:
        name: name of the kernel's entry.
        n_rows: rows of each leaf; with none, nothing may be launched.
        n_leaves: leaves in the kernel's table.
        lanes: threads that share a row, of `count_lanes`.
        arguments: the kernel's own arguments.
    """
    rows_per_block = THREADS // lanes
    groups = min(-(-n_rows // rows_per_block), MOST_BLOCKS)
    cuda.launch(name, (groups, n_leaves), (lanes, rows_per_block), arguments)


def launch_lines(
    name: str, n_lines: int, n_lanes: int, arguments: Sequence[np.generic | DeviceArray]
) -> None:
    """Launch a kernel whose grid is (lines, lanes) and whose block is (lanes, lines)."""
    lanes = min(-(-n_lanes // WARP) * WARP, THREADS)
    lines = THREADS // lanes
    grid = min(-(-n_lines // lines), MOST_BLOCKS), min(-(-n_lanes // lanes), MOST_BLOCKS)
    cuda.launch(name, grid, (lanes, lines), arguments)


def launch_serial(name: str, n_threads: int, arguments: Sequence[np.generic | DeviceArray]) -> None:
    """Launch a kernel with one axis, whose threads each have long work."""
    n_blocks = min(-(-n_threads // SERIAL_THREADS), MOST_BLOCKS)
    cuda.launch(name, (n_blocks,), (SERIAL_THREADS,), arguments)


def launch_items(
    name: str, n_items: int, arguments: Sequence[int | np.generic | DeviceArray]
) -> None:
    """Launch a kernel with one axis and a thread for each item; Python's integers become int64."""
    typed = [np.int64(each) if isinstance(each, int) else each for each in arguments]
    n_blocks = min(-(-n_items // ITEM_THREADS), MOST_BLOCKS)
    cuda.launch(name, (n_blocks,), (ITEM_THREADS,), typed)
