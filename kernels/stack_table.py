"""The table of a gather of stacks: where the frames of all leaves lie. It copies nothing."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from parllel.kernels.image_shift import NO_IMAGE, Image

ENTRY_NBYTES = 20 * 8  # of StackTable's integers for one leaf: pairs, which are loaded at once


class Stacks(NamedTuple):
    """One leaf: where its frames lie, and where the stacks of them are written.

    Frame k is at `source + k * stride`, and its flag at `is_first + k`. The frame one step earlier
    in time is frame `k - n_columns`. Row i has the stacks whose newest frames are `i * n_stacks`
    and those that follow it: a stack of each agent, or one. The `n_frames - 1` steps before row 0
    must be in memory, too: they are read as far as no flag says that an episode begins.

    A leaf of plain rows is one of stacks of 1 frame; it needs no flags.

    Args:
        n_rows: number that an index of the leaf must be below.
        destination: address of the first stack to write; stacks follow each other without gaps.
        source: address of row 0's first frame.
        stride: bytes from a frame to the next one.
        nbytes: bytes of a frame.
        n_frames: frames of a stack.
        n_columns: frames of a time step.
        is_first: address of the first frame's flag, one byte: whether an episode begins with it.
        blank: address of the frame that fills a stack before an episode's beginning; 0 where the
            episode's first frame does.
        rows: address of int64 numbers of rows: an index picks among them; 0 where it names rows
            itself. A number -1 - s below 0 is s of those beside the rows. They are not checked.
        beside: address of frames, without gaps, that follow the rows beside which they are: for
            each s as many as a row has stacks, the newest ones of these. 0 where there are none.
        beside_rows: address of int64 numbers: row beside_rows[s] has the frames before those of s.
        n_stacks: stacks of a row.
        image: how the frames are shifted; by default not at all.
    """

    n_rows: int
    destination: int
    source: int
    stride: int
    nbytes: int
    n_frames: int = 1
    n_columns: int = 1
    is_first: int = 0
    blank: int = 0
    rows: int = 0
    beside: int = 0
    beside_rows: int = 0
    n_stacks: int = 1
    image: Image = NO_IMAGE


class StackTable:
    """Where the stacks of all leaves are read and written; made once, used for many gathers.

    It holds addresses only: its maker keeps the memory alive, and gives the table only to a
    processor that can reach the addresses. Outputs share no byte with each other, nor with what is
    read.

    Args:
        leaves: for each leaf its addresses and sizes.

    Attributes:
        entries: int64 [n_leaves, 20], read-only: the leaves without `n_rows`, the numbers of their
            images, and a 0. The format of the kernel.
        address: address of the entries in host memory.
        n_rows: number that an index of all leaves must be below.
        is_shifted: whether some leaf is shifted.

    Raises:
        ValueError: no leaf, or stacks of no frame.
    """

    __slots__ = ("address", "entries", "is_shifted", "n_rows")

    def __init__(self, leaves: Sequence[Stacks]) -> None:
        if not leaves:
            raise ValueError("stacks: no leaf, expected at least one")
        shortest = min(leaf.n_frames for leaf in leaves)
        if shortest < 1:
            raise ValueError(f"stacks: got {shortest} frames, expected 1 or more")
        self.entries: npt.NDArray[np.int64] = np.array(
            [(*leaf[1:-1], *leaf.image, 0) for leaf in leaves], np.int64
        )
        self.entries.flags.writeable = False
        self.address: int = self.entries.__array_interface__["data"][0]
        self.n_rows = min(leaf.n_rows for leaf in leaves)
        self.is_shifted = any(leaf.image.most for leaf in leaves)
