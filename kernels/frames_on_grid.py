"""Gathers of stacks on a GPU: the two entries, unshifted and shifted. `frames` has their parts."""

from typing import NamedTuple

from parllel.kernels.frames import (
    IMAGE_AT,
    STACK_PARTS,
    find_frame,
    find_newest,
    frame_bits,
    read_frames,
)
from parllel.kernels.image_shift import (
    DRAW_PARTS,
    GPU_PARTS,
    Image,
    copy_image_share,
    draw_shift,
    load_seed,
    read_image,
)
from parllel.kernels.row_share import SHARE_PARTS, copy_share
from parllel.kernels.rows import Picks, pick
from parllel.kernels.stack_table import ENTRY_NBYTES
from parllel.kernels.targets import DeviceEntry
from parllel.kernels.teams import TEAM_PARTS, Share, Teams, find_share
from parllel.kernels.transitions import Seed


class Launch(NamedTuple):
    """What all threads of a launch are given."""

    table: int
    out: int
    n_rows: int
    picks: Picks
    most_frames: int  # of all stacks of a row; each leaf is given as many


class Copied(NamedTuple):
    """One frame of an output."""

    at: int  # number of the row that is gathered
    leaf: int
    destination: int
    source: int  # 0: the row has no such frame
    nbytes: int
    bits: int  # their low ones are 0 as far as they are in all addresses of the leaf


def find_copied(launch: Launch, first_leaf: int, number: int) -> Copied:
    """Return one of the frames of all leaves from a first one on, which are counted through."""
    count = launch.n_rows * launch.most_frames
    # At most as often as there are leaves, and frames: quicker than divisions.
    at, leaf, place = number, first_leaf, 0
    while at >= count:
        at -= count
        leaf += 1
    while at >= launch.n_rows:
        at -= launch.n_rows
        place += 1
    frames = read_frames(launch.table, leaf, launch.out)
    row = pick(launch.picks, at)
    n_frames = frames.n_stacks * frames.n_frames
    destination = frames.destination + (at * n_frames + place) * frames.nbytes
    source = 0
    if place < n_frames:
        stack = 0
        while place >= frames.n_frames:  # at most as often as there are stacks
            place -= frames.n_frames
            stack += 1
        source = find_frame(frames, find_newest(frames, row, stack), place)
    return Copied(at, leaf, destination, source, frames.nbytes, frame_bits(frames))


def copy_frame(copied: Copied, share: Share) -> None:
    """Copy a lane's share of a frame on a GPU."""
    copy_share(
        copied.destination,
        copied.source,
        copied.nbytes,
        copied.bits,
        share.lane,
        share.lanes,
        share.mates,
    )


def copy_shifted_frame(copied: Copied, image: Image, seed: Seed, share: Share) -> None:
    """Copy a lane's share of a frame of images on a GPU."""
    copy_image_share(
        copied.destination,
        copied.source,
        copied.nbytes,
        copied.bits,
        image,
        draw_shift(image, seed, copied.at),
        share.lane,
        share.lanes,
        share.mates,
    )


def gather_on_grid(
    table: int,
    out: int,
    n_rows: int,
    vector: int,
    start: int,
    step: int,
    most_frames: int,
    n_wide: int,
    n_narrow: int,
    wide_bits: int,
    narrow_bits: int,
    n_riders: int,
) -> None:
    """Gather all stacks, unshifted. Grid and block have one axis; `Teams` says who copies what.

    Each leaf is given as many frames as the stacks of a row have at most, `most_frames`. Any grid
    gathers everything.
    """
    share = find_share(Teams(n_wide, n_narrow, wide_bits, narrow_bits, n_riders))
    launch = Launch(table, out, n_rows, Picks(vector, start, step), most_frames)
    at = share.row
    while at < share.n_leaves * n_rows * most_frames:
        copied = find_copied(launch, share.first_leaf, at)
        if copied.source != 0:
            copy_frame(copied, share)
        at += share.row_step


def gather_shifted_on_grid(
    table: int,
    out: int,
    n_rows: int,
    vector: int,
    start: int,
    step: int,
    most_frames: int,
    seed: int,
    n_wide: int,
    n_narrow: int,
    wide_bits: int,
    narrow_bits: int,
    n_riders: int,
) -> None:
    """Gather all stacks as `gather_on_grid`, and shift those of images.

    It is an entry of its own, because shifts take more registers, which other gathers need not
    wait for.
    """
    share = find_share(Teams(n_wide, n_narrow, wide_bits, narrow_bits, n_riders))
    launch = Launch(table, out, n_rows, Picks(vector, start, step), most_frames)
    at = share.row
    while at < share.n_leaves * n_rows * most_frames:
        copied = find_copied(launch, share.first_leaf, at)
        image = read_image(table + copied.leaf * ENTRY_NBYTES + IMAGE_AT)
        if copied.source != 0 and image.most == 0:
            copy_frame(copied, share)
        elif copied.source != 0:
            copy_shifted_frame(copied, image, load_seed(seed), share)
        at += share.row_step


_GRID_PARTS = (*TEAM_PARTS, *STACK_PARTS, *SHARE_PARTS, find_copied, copy_frame)
DEVICE = DeviceEntry("frames", gather_on_grid, f"void({', '.join(['int64'] * 12)})", _GRID_PARTS)
SHIFTED = DeviceEntry(
    "shifted_frames",
    gather_shifted_on_grid,
    f"void({', '.join(['int64'] * 13)})",
    (*_GRID_PARTS, *DRAW_PARTS, *GPU_PARTS, copy_shifted_frame),
)
