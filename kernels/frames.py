"""Gathers of stacks from single frames: their parts, the entry for CPUs, the check before it.

A frame is stored once. The stack of a row is made up of its frame and those of the steps before
it, as far as they belong to the same episode; before an episode's beginning the stack is filled
with the episode's first frame, or with a frame that is given. One launch serves all leaves of a
tree: a leaf of plain rows is one of stacks of 1 frame. Frames that are images may be shifted at
random on the way (`image_shift`), all frames of a stack alike.
"""

from typing import Any, NamedTuple

from parllel.kernels.addresses import (
    copy_1,
    copy_4,
    copy_8,
    copy_16,
    load_byte,
    load_int64,
    load_two_int64,
)
from parllel.kernels.image_shift import (
    CPU_PARTS,
    DRAW_PARTS,
    Image,
    copy_image,
    draw_shift,
    load_seed,
    read_image,
)
from parllel.kernels.row_table import Index, Integers, as_index, check_inside
from parllel.kernels.rows import (
    DONE,
    NO_VECTOR,
    OUT_OF_RANGE,
    Picks,
    address_of,
    copy_row,
    find_span,
    is_inside,
    pick,
)
from parllel.kernels.stack_table import ENTRY_NBYTES, Stacks, StackTable
from parllel.kernels.targets import CpuKernel

IMAGE_AT = 12 * 8  # where the last ones are, those of the image

# On a CPU. Small enough that the frames which an observation and the next one share are read from
# a cache the second time: 0.9 of the time of leaf after leaf (bench/bench_frames.py).
ROWS_AT_ONCE = 8


def gather_stacks(table: StackTable, index: Index, *, out_address: int = 0, seed: int = 0) -> None:
    """Gather stacks in host memory, of all leaves: that of row index[i] to output i.

    output[leaf][i, s, k] = frame[leaf][newest - min(n - 1 - k, before) * n_columns]
    newest = index[i] * n_stacks + s

    where s counts the stacks of a row, k the n frames of a stack, the oldest first, and `before`
    the frames of the episode before the newest one. With a blank frame, that is output i, s, k
    where n - 1 - k > before.
    `Stacks` says what a leaf with `rows` and frames beside them gives. Frames of images are shifted
    as `image_shift.draw_shift` says for the seed and i.

    Runs in the calling thread, without the GIL. An index that is neither a range nor a contiguous
    int64 vector is converted, which allocates. The first call compiles, or loads what an earlier
    process compiled.

    Args:
        table: where the frames lie; in memory that this process can read and write. The outputs
            hold as many stacks as the index has rows.
        index: range, or integers [n], in memory apart from the outputs.
        out_address: added to the destination of each leaf.
        seed: address of a `Seed`, int64 [3], for random shifts; 0 where no leaf is shifted.

    Raises:
        TypeError: the index is no range and no array of integers.
        ValueError: it has more axes than one.
        IndexError: a row is outside a leaf. Nothing has been written then.
    """
    if _run(table, index, out_address, seed, writes=True) != DONE:
        # The entry may have refused an index of another dtype only.
        outcome = _run(table, _checked(table, index), out_address, seed, writes=True)
        assert outcome == DONE, "the compiled entry refuses what no check finds wrong"


def check_stacks(table: StackTable, index: Index) -> None:
    """Raise what `gather_stacks` would raise, and gather nothing: a GPU checks no index."""
    if _run(table, index, 0, 0, writes=False) != DONE:
        _checked(table, index)


def _checked(table: StackTable, index: object) -> range | Integers:
    rows = as_index("index", index)
    check_inside("index", rows, table.n_rows)
    return rows


class Frames(NamedTuple):
    """An entry of the table; `Stacks` says what it means."""

    destination: int
    source: int
    stride: int
    nbytes: int
    n_frames: int
    n_columns: int
    is_first: int
    blank: int
    rows: int
    beside: int
    beside_rows: int
    n_stacks: int


class Newest(NamedTuple):
    """Where a stack is, seen from its newest frame."""

    beside: int  # address of the newest frame, where it is beside the rows; else 0
    number: int  # of the newest frame, or of the one before the newest that is beside
    before: int  # frames of the same episode before that one, of `count_before`


def read_frames(table: int, number: int, out: int) -> Frames:
    """Return an entry of the table at an address, with `out` added to its destination."""
    at = table + number * ENTRY_NBYTES
    destination, source = load_two_int64(at)
    stride, nbytes = load_two_int64(at + 16)
    n_frames, n_columns = load_two_int64(at + 32)
    is_first, blank = load_two_int64(at + 48)
    rows, beside = load_two_int64(at + 64)
    beside_rows, n_stacks = load_two_int64(at + 80)
    sizes = stride, nbytes, n_frames, n_columns
    places = is_first, blank, rows, beside, beside_rows
    return Frames(out + destination, source, *sizes, *places, n_stacks)


def count_before(frames: Frames, number: int) -> int:
    """Return how many frames of the same episode are before one; what a stack needs is enough.

    The number may be larger than the frames of a stack, and is then not that of the episode.
    """
    needed = frames.n_frames - 1
    count = 0
    is_same = 1  # whether all frames up to here are of the episode
    while count < needed and is_same != 0:
        # Four flags are loaded before one is looked at: memory is waited for once. Those that a
        # stack does not need are its last one.
        at = frames.is_first + number - count * frames.n_columns
        last = needed - 1 - count
        flags = (
            load_byte(at),
            load_byte(at - min(1, last) * frames.n_columns),
            load_byte(at - min(2, last) * frames.n_columns),
            load_byte(at - min(3, last) * frames.n_columns),
        )
        for flag in flags:
            is_same &= 1 - min(flag, 1)
            count += is_same
    return count


def frame_bits(frames: Frames) -> int:
    """Return a number whose low bits are 0 as far as they are in every frame's address."""
    bits = frames.destination | frames.nbytes | frames.source | frames.stride
    return bits | frames.blank | frames.beside


def bits_of(leaf: Stacks) -> int:
    """Return the number of `frame_bits` for a leaf."""
    return frame_bits(Frames(*leaf[1:-1]))


def find_newest(frames: Frames, row: int, stack: int) -> Newest:
    """Return where one of the stacks is of the row that an index names."""
    beside = 0
    if frames.rows != 0:
        row = load_int64(frames.rows + row * 8)
        if row < 0:
            place = -1 - row
            beside = frames.beside + (place * frames.n_stacks + stack) * frames.nbytes
            row = load_int64(frames.beside_rows + place * 8) if frames.n_frames > 1 else 0
    number = row * frames.n_stacks + stack
    return Newest(beside, number, count_before(frames, number))


def find_frame(frames: Frames, newest: Newest, place: int) -> int:
    """Return the address of the frame at a place of a stack; place 0 is the oldest."""
    back = frames.n_frames - 1 - place
    if newest.beside != 0:
        if back == 0:
            return newest.beside
        back -= 1
    if back > newest.before:
        if frames.blank != 0:
            return frames.blank
        back = newest.before
    return frames.source + (newest.number - back * frames.n_columns) * frames.stride


def find_row(frames: Frames, row: int) -> int:
    """Return the address of the row that an index names, of a leaf of plain rows."""
    if frames.rows != 0:
        row = load_int64(frames.rows + row * 8)
    if row < 0:
        return frames.beside - (row + 1) * frames.nbytes
    return frames.source + row * frames.stride


def stacks_nbytes(frames: Frames) -> int:
    """Return the bytes of all stacks of a row."""
    return frames.n_stacks * frames.n_frames * frames.nbytes


def gather_words(frames: Frames, n_rows: int, picks: Picks) -> None:
    """Gather rows of 1, 4, 8 or 16 bytes on a CPU. The compiler makes a loop for each size."""
    for at in range(n_rows):
        destination = frames.destination + at * frames.nbytes
        source = find_row(frames, pick(picks, at))
        if frames.nbytes == 1:
            copy_1(destination, source)
        elif frames.nbytes == 4:
            copy_4(destination, source)
        elif frames.nbytes == 8:
            copy_8(destination, source)
        else:
            copy_16(destination, source)


def gather_part(frames: Frames, begin: int, end: int, picks: Picks) -> None:
    """Gather the stacks of one leaf from number `begin` on, on a CPU."""
    destination = frames.destination + begin * stacks_nbytes(frames)
    for at in range(begin, end):
        row = pick(picks, at)
        for stack in range(frames.n_stacks):
            newest = find_newest(frames, row, stack)
            for place in range(frames.n_frames):
                source = find_frame(frames, newest, place)
                copy_row(destination, source, frames.nbytes)
                destination += frames.nbytes


def gather_shifted(
    frames: Frames, image: Image, begin: int, end: int, picks: Picks, seed: int
) -> None:
    """Gather the stacks of one leaf of images that are shifted, as `gather_part`.

    Apart from it: the compiler makes the loop over plain frames slower beside this one.
    """
    destination = frames.destination + begin * stacks_nbytes(frames)
    for at in range(begin, end):
        row = pick(picks, at)
        shift = draw_shift(image, load_seed(seed), at)
        for stack in range(frames.n_stacks):
            newest = find_newest(frames, row, stack)
            for place in range(frames.n_frames):
                source = find_frame(frames, newest, place)
                copy_image(destination, source, frames.nbytes, image, shift)
                destination += frames.nbytes


def is_of_words(frames: Frames, image: Image) -> bool:
    """Return whether a leaf has rows for which there is a loop of their own."""
    is_one = frames.n_frames == 1 and frames.n_stacks == 1
    return is_one and image.most == 0 and frames.nbytes in (1, 4, 8, 16)


def gather_in_turn(
    table: int, n_leaves: int, out: int, n_rows: int, picks: Picks, seed: int
) -> None:
    """Gather all stacks on a CPU: leaves of words, then some rows of all others, and so on."""
    for number in range(n_leaves):
        frames = read_frames(table, number, out)
        if is_of_words(frames, read_image(table + number * ENTRY_NBYTES + IMAGE_AT)):
            gather_words(frames, n_rows, picks)
    for begin in range(0, n_rows, ROWS_AT_ONCE):
        end = min(begin + ROWS_AT_ONCE, n_rows)
        for number in range(n_leaves):
            frames = read_frames(table, number, out)
            image = read_image(table + number * ENTRY_NBYTES + IMAGE_AT)
            if image.most != 0:
                gather_shifted(frames, image, begin, end, picks, seed)
            elif not is_of_words(frames, image):
                gather_part(frames, begin, end, picks)


def gather_checked(
    table: int,
    n_leaves: int,
    out: int,
    limit: int,
    writes: bool,
    vector: Integers,
    start: int,
    step: int,
    count: int,
    seed: int,
) -> int:
    """Check that all rows are in [0, limit), then gather; return what was found.

    The index is a vector that is not empty, or else a range of `count` rows.
    """
    n_rows = max(vector.size, count)
    if n_rows == 0:
        return DONE
    lowest, highest = find_span(vector, start, step, count, limit)
    if lowest < 0 or highest >= limit:
        return OUT_OF_RANGE
    if writes:
        picks = Picks(address_of(vector), start, step)
        gather_in_turn(table, n_leaves, out, n_rows, picks, seed)
    return DONE


STACK_PARTS = (pick, read_frames, frame_bits, count_before, find_newest, find_frame)


PARTS = (
    *(copy_row, is_inside, find_span, address_of, *STACK_PARTS, find_row),
    *(
        *DRAW_PARTS,
        *CPU_PARTS,
        stacks_nbytes,
        gather_words,
        gather_part,
        gather_shifted,
        is_of_words,
        gather_in_turn,
    ),
)
_INDEX = "Array(int64, 1, 'C', readonly=True), int64, int64, int64"
_ON_CPU = CpuKernel(
    gather_checked,
    f"int64(int64, int64, int64, int64, boolean, {_INDEX}, int64)",
    parts=PARTS,
)


def _run(
    table: StackTable, index: Index, out_address: int, seed: int, *, writes: bool
) -> int | None:
    """Return what the compiled entry found; None where it does not take the index' type."""
    rows: tuple[Any, ...] = (index, 0, 0, 0)  # Any: whatever a caller gives
    if type(index) is range:
        rows = (NO_VECTOR, index.start, index.step, len(index))
    arguments = (table.address, len(table.entries), out_address, table.n_rows, writes, *rows)
    try:
        return _ON_CPU.compiled(*arguments, seed)
    except (TypeError, OverflowError):  # raised before anything runs
        return None
