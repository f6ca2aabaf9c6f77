"""Copies of one row by many threads of a GPU, each of which copies its share."""

from parllel.kernels.addresses import (
    copy_1,
    copy_4,
    copy_8,
    copy_16,
    copy_shifted,
    copy_up_to_4_of_1,
    copy_up_to_4_of_16,
    copy_up_to_4_shifted,
    copy_up_to_8_of_16,
)

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


def copy_misaligned(destination: int, source: int, at: int, step: int, end: int) -> None:
    """Copy words of 16 bytes to multiples of 16 from anywhere, from the offset `at` on."""
    while at + step < end:
        copy_up_to_4_shifted(destination, source, at, step, end)
        at += 4 * step
    if at < end:
        copy_shifted(destination, source, at, step, end)


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
    destination: int, source: int, nbytes: int, bits: int, lane: int, lanes: int
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
        lanes: number of threads that share the row.
    """
    done = 0
    if bits & 15 == 0:
        done = nbytes & ~15
        copy_aligned(destination, source, lane * 16, lanes * 16, done)
    elif nbytes >= SHIFTED_NBYTES:
        begin, done = find_inside(destination, source, nbytes)
        copy_misaligned(destination, source, begin + lane * 16, lanes * 16, done)
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
SHARE_PARTS = (copy_aligned, copy_misaligned, copy_bytes, find_inside, copy_share)
