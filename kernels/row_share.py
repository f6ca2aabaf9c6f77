"""Copies of one row by many threads of a GPU, each of which copies its share."""

from parllel.kernels.addresses import (
    copy_1,
    copy_4,
    copy_8,
    copy_16,
    copy_up_to_4_of_1,
    copy_up_to_4_of_16,
    copy_up_to_8_of_16,
)
from parllel.kernels.words import Word, is_handed, load_own, store_word, take_around, word_at

# Where words are shifted together, the ends of a row take up to 62 bytes: of a shorter row, nearly
# all. As short rows have one word or byte for each lane, they take one round trip either way.
SHIFTED_NBYTES = 128


def copy_aligned(destination: int, source: int, at: int, step: int, end: int) -> None:
    """Copy words of 16 bytes from the offset `at` on, as many at once as there are."""
    while at + step < end:
        if at + 4 * step < end:
            copy_up_to_8_of_16(destination, source, at, step, end)
            at += 8 * step
        else:
            copy_up_to_4_of_16(destination, source, at, step, end)
            at += 4 * step
    if at < end:
        copy_16(destination + at, source + at)


def place_to_load(source: int, at: int, end: int) -> int:
    """Return where a lane loads the word at an offset.

    Behind the last word, that is the aligned word with the last byte: the lane before may need it.
    """
    return source + at if at < end else (source + end - 1) & ~15


def put_misaligned(destination: int, source: int, at: int, end: int, own: Word, mates: int) -> None:
    """Store the word at an offset, if there is one, of what `load_own` loaded for it."""
    word = word_at(take_around(own, mates), source + at)
    if at < end:
        store_word(destination + at, word)


def copy_misaligned(
    destination: int, source: int, begin: int, end: int, lane: int, lanes: int, mates: int
) -> None:
    """Copy words of 16 bytes to multiples of 16 from anywhere, from the offset `begin` on.

    Lanes hand words to each other. All lanes of a row come to the same calls: what they are asked
    to do until then is the same, and so is the number of rounds, which are counted for the row's
    first lane. Only a store may be one lane's own.
    """
    step = lanes * 16
    at = begin + lane * 16
    first = begin  # what `at` is for lane 0
    has_next = is_handed(source + at, mates)  # in each round the same
    while first < end:
        if first + step < end:
            own = load_own(place_to_load(source, at, end), has_next)
            second = load_own(place_to_load(source, at + step, end), has_next)
            third = load_own(place_to_load(source, at + 2 * step, end), has_next)
            fourth = load_own(place_to_load(source, at + 3 * step, end), has_next)
            put_misaligned(destination, source, at, end, own, mates)
            put_misaligned(destination, source, at + step, end, second, mates)
            put_misaligned(destination, source, at + 2 * step, end, third, mates)
            put_misaligned(destination, source, at + 3 * step, end, fourth, mates)
        else:
            own = load_own(place_to_load(source, at, end), has_next)
            put_misaligned(destination, source, at, end, own, mates)
        at += 4 * step
        first += 4 * step


def copy_bytes(destination: int, source: int, at: int, step: int, end: int) -> None:
    """Copy bytes from the offset `at` on."""
    while at + step < end:
        copy_up_to_4_of_1(destination, source, at, step, end)
        at += 4 * step
    if at < end:
        copy_1(destination + at, source + at)


def find_inside(destination: int, source: int, nbytes: int) -> tuple[int, int]:
    """Return the offsets between which a row is copied by words that need shifts.

    From one to the other, the destination has whole words at multiples of 16, and all words of the
    source that have one of their bytes lie inside the row: beside it, memory may belong to others.
    The row has at least SHIFTED_NBYTES bytes.
    """
    begin = -destination & 15
    shift = (source + begin) & 15
    if begin < shift:
        begin += 16
    excess = -shift & 15  # of the last word that is read, after the last byte that is needed
    return begin, begin + ((nbytes - excess - begin) & ~15)


def copy_share(
    destination: int, source: int, nbytes: int, bits: int, lane: int, lanes: int, mates: int
) -> None:
    """Copy a lane's share of a row on a GPU. The lanes from 0 to `lanes - 1` copy each byte once.

    Neighbours copy neighbouring words, which a GPU joins to one access. Rows at multiples of 16
    are copied by words of 16 bytes. So are long rows elsewhere: their words are shifted together,
    and the few bytes at both ends are copied one by one. What is left goes by words of 8, of 4,
    and by bytes.

    Args:
        destination: address of the row to write.
        source: address of the row to read.
        nbytes: bytes in the row.
        bits: a number whose low bits are 0 as far as they are in both addresses.
        lane: number of the thread among those that share the row.
        lanes: number of threads that share the row. They all call this, as they hand words to each
            other.
        mates: those of them that are in this thread's warp, as of `teams.find_mates`.
    """
    done = 0
    if bits & 15 == 0:
        done = nbytes & ~15
        copy_aligned(destination, source, lane * 16, lanes * 16, done)
    elif nbytes >= SHIFTED_NBYTES:
        begin, done = find_inside(destination, source, nbytes)
        copy_misaligned(destination, source, begin, done, lane, lanes, mates)
        copy_bytes(destination, source, lane, lanes, begin)
        bits = 1
    if bits & 7 == 0:
        at = done + lane * 8
        done = nbytes & ~7
        while at < done:
            copy_8(destination + at, source + at)
            at += lanes * 8
    if bits & 3 == 0:
        at = done + lane * 4
        done = nbytes & ~3
        while at < done:
            copy_4(destination + at, source + at)
            at += lanes * 4
    copy_bytes(destination, source, done + lane, lanes, nbytes)


# What `copy_share` and its callers' entries are made of, in the order of `DeviceEntry.parts`.
SHARE_PARTS = (
    copy_aligned,
    place_to_load,
    put_misaligned,
    copy_misaligned,
    copy_bytes,
    find_inside,
    copy_share,
)
