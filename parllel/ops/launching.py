"""How kernels are launched: the sizes of blocks and grids, and the checks before a launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from parllel import cuda
from parllel.cuda import AnyArray, DeviceArray

WARP = 32
MOST_BLOCKS = 65_535  # on an axis; the kernels go on where the grid ends


class LaunchSizes(NamedTuple):
    """The sizes of launches that a GPU may like larger or smaller; threads are those of a block.

    As they are, all are allowed on every GPU, and not tuned on one yet. None of them changes what a
    kernel computes. What a thread copies at once is written into the kernels, and is no part of
    this.
    """

    line_threads: int = 256  # neighbours have neighbouring words
    serial_threads: int = WARP  # long work each: spread far over the GPU
    item_threads: int = 128  # an item of a minibatch each
    # Lanes of rows: as many as a part needs with 8 words for each. With riders at most 640 in all,
    # for which the registers are enough (`test_blocks_of_copies_have_registers_enough`). Gathers
    # that shift images take more registers: with them, 256 lanes are the most.
    copy_threads: int = 128
    copy_blocks: int = 128  # a copy of few rows has smaller blocks, if it thus gets so many
    part_nbytes: int = 128 * 8 * 16  # of a row that the same threads copy; longer ones are split
    # A leaf has riders (`kernels.teams`) where it needs so much fewer lanes than the widest one.
    rider_ratio: int = 4
    most_rider_threads: int = 4 * WARP
    # Walks over time are divided into spans, which are walked at once, from so many steps on, and
    # up to so many environments: with more, each of a GPU's processors has a warp anyway.
    scanned_steps: int = 256
    most_scanned_width: int = 4096
    most_spans: int = 32


SIZES = LaunchSizes()
"""The sizes of all launches of this process, which a bench may replace."""


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


def launch_lines(
    name: str, n_lines: int, n_lanes: int, arguments: Sequence[np.generic | DeviceArray]
) -> None:
    """Launch a kernel whose grid is (lines, lanes) and whose block is (lanes, lines)."""
    lanes = min(-(-n_lanes // WARP) * WARP, SIZES.line_threads)
    lines = SIZES.line_threads // lanes
    grid = min(-(-n_lines // lines), MOST_BLOCKS), min(-(-n_lanes // lanes), MOST_BLOCKS)
    cuda.launch(name, grid, (lanes, lines), arguments)


def launch_serial(name: str, n_threads: int, arguments: Sequence[np.generic | DeviceArray]) -> None:
    """Launch a kernel with one axis, whose threads each have long work."""
    n_blocks = min(-(-n_threads // SIZES.serial_threads), MOST_BLOCKS)
    cuda.launch(name, (n_blocks,), (SIZES.serial_threads,), arguments)


def find_span(steps: int, width: int) -> int:
    """Return the steps that a thread walks; all of them where time is not divided."""
    if steps < SIZES.scanned_steps or width > SIZES.most_scanned_width:
        return max(1, steps)
    # Multiples of the 16 steps that a thread loads at once.
    return -(-steps // (SIZES.most_spans * 16)) * 16


def launch_items(
    name: str, n_items: int, arguments: Sequence[int | np.generic | DeviceArray]
) -> None:
    """Launch a kernel with one axis and a thread for each item; Python's integers become int64."""
    typed = [np.int64(each) if isinstance(each, int) else each for each in arguments]
    n_blocks = min(-(-n_items // SIZES.item_threads), MOST_BLOCKS)
    cuda.launch(name, (n_blocks,), (SIZES.item_threads,), typed)
