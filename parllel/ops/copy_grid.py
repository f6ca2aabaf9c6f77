"""CopyGrid: the grid of a launch that copies rows of many leaves, and which threads copy what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parllel import cuda
from parllel.cuda import DeviceArray, Stream
from parllel.kernels.row_share import SHIFTED_NBYTES
from parllel.kernels.teams import Teams
from parllel.ops import launching
from parllel.ops.launching import MOST_BLOCKS, WARP

WORD = 16  # bytes of the largest access
WORDS_AT_ONCE = 8  # of a lane, which `kernels.row_share` loads before it stores one


class CopyGrid:
    """How a launch is divided among the leaves whose rows it copies; made once for a table.

    A leaf's rows get as many threads, its lanes, as they have work for. Leaves that need few lanes
    beside one that needs many have no blocks of their own: threads that ride along in the others'
    blocks copy them. `kernels.teams.Teams` is the kernels' side of it.

    >>> grid = CopyGrid([1, 128, 1])
    >>> grid.order
    [1, 0, 2]
    >>> grid.shape(256)
    (256, 160, Teams(n_wide=1, n_narrow=2, wide_bits=7, narrow_bits=0, n_riders=32))

    Args:
        lanes: for each leaf the threads that share a row, of `count_lanes`; at least one leaf.

    Attributes:
        order: numbers of the leaves as the kernel's table must have them: wide ones, narrow ones.
    """

    def __init__(self, lanes: Sequence[int]) -> None:
        widest = max(lanes)
        is_narrow = [each * launching.SIZES.rider_ratio <= widest for each in lanes]
        self.order = sorted(range(len(lanes)), key=is_narrow.__getitem__)
        self._n_narrow = sum(is_narrow)
        self._wide_lanes = widest
        narrow = [each for each, rides in zip(lanes, is_narrow, strict=True) if rides]
        self._narrow_lanes = max(narrow, default=1)
        self._shaped: tuple[int, launching.LaunchSizes] | None = None  # what `_launch` is for
        self._launch: tuple[tuple[int], tuple[int], list[np.int64]]

    @property
    def n_wide(self) -> int:
        """Number of leaves that have blocks of their own: the first ones of the order."""
        return len(self.order) - self._n_narrow

    def shape(self, n_rows: int) -> tuple[int, int, Teams]:
        """Return blocks, threads of a block, and what each thread copies.

        Args:
            n_rows: rows of each leaf, 1 or more.
        """
        sizes, lanes, n_all = launching.SIZES, self._wide_lanes, self.n_wide * n_rows
        rows_of_warp = max(1, WARP // lanes)
        rows = -(-n_all // (sizes.copy_blocks * rows_of_warp)) * rows_of_warp
        rows = min(rows, max(1, sizes.copy_threads // lanes), n_all)
        n_blocks = min(-(-n_all // rows), MOST_BLOCKS)
        # Riders begin with a warp of their own: in another one, the others would wait for them.
        n_main = -(-rows * lanes // WARP) * WARP
        warps = -(-self._n_narrow * n_rows * self._narrow_lanes // (n_blocks * WARP))
        n_riders = min(warps * WARP, sizes.most_rider_threads)
        bits = lanes.bit_length() - 1, self._narrow_lanes.bit_length() - 1
        return n_blocks, n_main + n_riders, Teams(self.n_wide, self._n_narrow, *bits, n_riders)

    def launch(
        self,
        name: str,
        n_rows: int,
        arguments: Sequence[np.generic | DeviceArray],
        *,
        stream: Stream | None = None,
    ) -> Stream:
        """Launch a kernel with its own arguments, followed by those that share out the rows.

        Returns:
            The stream of the launch: the one that was given, or the caller's current one.
        """
        key = n_rows, launching.SIZES
        if key != self._shaped:  # a program mostly copies as many rows as the last time
            self._shaped = key
            n_blocks, n_threads, teams = self.shape(n_rows)
            self._launch = (n_blocks,), (n_threads,), [np.int64(number) for number in teams]
        grid, block, shares = self._launch
        return cuda.launch(name, grid, block, [*arguments, *shares], stream=stream)


def count_lanes(nbytes: int, bits: int) -> int:
    """Return how many threads share a row: a power of two, at most a block's threads.

    Args:
        nbytes: bytes of a row.
        bits: a number whose low bits are 0 as far as they are in the addresses of all rows.
    """
    word = WORD
    while bits % word and nbytes < SHIFTED_NBYTES:
        word = {16: 8, 8: 4, 4: 1}[word]
    n_words = -(-nbytes // word)
    n_lanes = max(min(n_words, WARP), -(-n_words // WORDS_AT_ONCE), 1)
    return min(1 << (n_lanes - 1).bit_length(), launching.SIZES.copy_threads)


def split_row(nbytes: int) -> list[tuple[int, int]]:
    """Return offset and bytes of the parts of a row which different threads copy.

    They are about equally long, and begin at multiples of a memory sector's 32 bytes.
    """
    n_parts = max(1, -(-nbytes // launching.SIZES.part_nbytes))
    part = -(-nbytes // (n_parts * 32)) * 32
    return [(at, min(part, nbytes - at)) for at in range(0, max(1, nbytes), max(1, part))]
