"""Random shifts of images: what they are, and copies of images that are shifted on the way.

An image is shifted by up to so many pixels, down or up, and right or left. Pixels that come from
outside of it repeat the nearest one at its edge, as padding it so and cutting a random window out
would do. It holds no entry: `frames` copies by these.

Source: Kostrikov et al. 2020, "Image augmentation is all you need", arXiv:2004.13649, section 3.1.
"""

from typing import NamedTuple

from parllel.kernels.addresses import copy_1, copy_4_of_16, load_int64
from parllel.kernels.philox import Words, draw_below, philox
from parllel.kernels.rows import copy_row
from parllel.kernels.transitions import Seed, draw_words
from parllel.kernels.words import (
    Word,
    fill_word,
    is_handed,
    load_around,
    load_own,
    merge_words,
    move_word,
    no_word,
    store_8,
    store_word,
    take_around,
    word_at,
)

# Where a counter of random words has the number of a try (`draw_words`), those of shifts have this
# and the image's stream: more than any draw of transitions tries.
FIRST_STREAM = 1 << 31

# Divisions by a row's bytes are products with inverses: quicker on a GPU. With so many parts of 1,
# they are exact for all numbers whose product with the divisor is below that.
_INVERSE_BITS = 40
_ONE = 1 << _INVERSE_BITS

_LINE = 64  # bytes of a CPU's cache line
_EACH_BYTE = 0x0101010101010101

WORD = 16
MOST_PIXEL_NBYTES = WORD


class Image(NamedTuple):
    """How the bytes of a frame are an image, or several ones that are shifted alike: `make_image`.

    Attributes:
        most: pixels by which it is shifted at most, in each direction. 0: it is not shifted.
        row_nbytes: bytes from a pixel to the one below.
        pixel_nbytes: bytes of a pixel.
        height: rows of an image.
        stream: number of the sequence of shifts. Images with the same one are shifted alike.
        row_inverse: number by which `divide` divides by `row_nbytes`.
        height_inverse: number by which it divides by `height`.
    """

    most: int = 0
    row_nbytes: int = 0
    pixel_nbytes: int = 0
    height: int = 0
    stream: int = 0
    row_inverse: int = 0
    height_inverse: int = 0


NO_IMAGE = Image()


def make_image(
    *, most: int, height: int, width: int, pixel_nbytes: int, stream: int, n_images: int = 1
) -> Image:
    """Return how the bytes of a frame are some images, one after the other.

    Args:
        most: pixels by which they are shifted at most, in each direction.
        height, width: of an image, in pixels.
        pixel_nbytes: bytes of a pixel.
        stream: number of the sequence of shifts.
        n_images: images of a frame.

    Raises:
        ValueError: `most` is not from 1 to below height and width; or the images are larger than
            kernels can count.
    """
    if not 1 <= most < min(height, width):
        raise ValueError(
            f"shift: got up to {most} pixels of images of {height} x {width}, expected 1 or more"
            " pixels, and fewer than an image has on both sides"
        )
    row_nbytes = width * pixel_nbytes
    if n_images * height * row_nbytes * max(row_nbytes, height) >= _ONE:
        raise ValueError(
            f"shift: got {n_images} images of {height} x {width} pixels of {pixel_nbytes} bytes,"
            f" expected their bytes times those of a row to be below {_ONE:,}"
        )
    inverses = (_ONE // size + 1 for size in (row_nbytes, height))
    return Image(most, row_nbytes, pixel_nbytes, height, stream, *inverses)


class Shift(NamedTuple):
    """Where the pixel comes from that is written to a place."""

    down: int  # so many rows below that place
    right: int  # so many bytes to the right


class Plan(NamedTuple):
    """Where a word of a shifted image comes from, as far as it is known before it is loaded."""

    source: int  # offset in the frame of the word that is moved here
    begin: int  # byte of the word where an edge begins: bytes that repeat a pixel; may be outside
    is_moved: bool  # whether all bytes but those of the edge come from there


class Edge(NamedTuple):
    """The bytes of a word that repeat a pixel, from `begin` to `end`."""

    begin: int
    end: int
    pixel_at: int  # where the pixel is, seen from the word's first byte
    is_inside: bool  # whether that is in the word


def read_image(at: int) -> Image:
    """Return an image at an address, one int64 after the other."""
    return Image(
        load_int64(at),
        load_int64(at + 8),
        load_int64(at + 16),
        load_int64(at + 24),
        load_int64(at + 32),
        load_int64(at + 40),
        load_int64(at + 48),
    )


def divide(number: int, inverse: int) -> int:
    """Return number // n, for the inverse of n in an image; of a byte's offset, or of a row."""
    return (number * inverse) >> _INVERSE_BITS


def load_seed(at: int) -> Seed:
    """Return a seed at an address, one int64 after the other."""
    return Seed(load_int64(at), load_int64(at + 8), load_int64(at + 16))


def draw_shift(image: Image, seed: Seed, item: int) -> Shift:
    """Return the shift of an item of a minibatch: any pair of numbers from -most to most.

    All pairs have the same probability.
    """
    if image.most == 0:
        return Shift(0, 0)
    words = draw_words(seed, item, FIRST_STREAM + image.stream)
    n_places = 2 * image.most + 1
    down = draw_below(words, n_places) - image.most
    right = draw_below(Words(words.c, words.d, 0, 0), n_places) - image.most
    return Shift(down, right * image.pixel_nbytes)


# On a CPU


def write_edge(destination: int, source: int, image: Image, shift: Shift) -> None:
    """Write the edge of one row on a CPU: a pixel again and again, at its beginning or its end."""
    edge = 0 if shift.right < 0 else image.row_nbytes - shift.right
    pixel = 0 if shift.right < 0 else image.row_nbytes - image.pixel_nbytes
    for at in range(0, abs(shift.right), image.pixel_nbytes):
        for byte in range(image.pixel_nbytes):
            copy_1(destination + edge + at + byte, source + pixel + byte)


def write_left_edges(
    destination: int, source: int, n_rows: int, row_nbytes: int, count: int
) -> None:
    """Write the edges of rows whose pixels are bytes: of each row the first 8 bytes.

    Args:
        destination, source: addresses of the rows.
        n_rows, row_nbytes: their number, and the bytes of each, 8 or more.
        count: bytes of an edge, 1 to 7.
    """
    n_bits = 8 * count
    is_edge = (1 << n_bits) - 1
    for at in range(0, n_rows * row_nbytes, row_nbytes):
        inside = load_int64(source + at)
        store_8(destination + at, inside << n_bits | ((inside & 255) * _EACH_BYTE & is_edge))


def write_right_edges(
    destination: int, source: int, n_rows: int, row_nbytes: int, count: int
) -> None:
    """Write the edges of rows at their other ends, as `write_left_edges`."""
    n_bits, last = 8 * count, row_nbytes - 8
    is_inside = (1 << (64 - n_bits)) - 1
    for at in range(last, last + n_rows * row_nbytes, row_nbytes):
        inside = load_int64(source + at)
        edge = (inside >> 56 & 255) * _EACH_BYTE << (64 - n_bits)
        store_8(destination + at, inside >> n_bits & is_inside | edge)


def copy_inside(destination: int, source: int, nbytes: int) -> None:
    """Copy bytes on a CPU from anywhere to anywhere, by whole cache lines of the destination.

    The first line and the last one share bytes with their neighbours, which are copied twice.
    """
    if nbytes < _LINE:
        copy_row(destination, source, nbytes)
    else:
        copy_4_of_16(destination, source, WORD)
        at = _LINE - (destination & (_LINE - 1))
        while at + _LINE <= nbytes:
            copy_4_of_16(destination + at, source + at, WORD)
            at += _LINE
        last = nbytes - _LINE
        copy_4_of_16(destination + last, source + last, WORD)


def copy_plane(destination: int, source: int, image: Image, shift: Shift) -> None:
    """Copy one shifted image on a CPU: its inside as a whole, then the edges."""
    row_nbytes = image.row_nbytes
    top, bottom = max(0, -shift.down), image.height - max(0, shift.down)
    begin = top * row_nbytes + max(0, -shift.right)
    moved = shift.down * row_nbytes + shift.right
    inside_nbytes = (bottom - top) * row_nbytes - abs(shift.right)
    copy_inside(destination + begin, source + begin + moved, inside_nbytes)
    # The bytes that came from a neighbouring row, and the ones outside.
    n_rows, count = bottom - top, abs(shift.right)
    written, read = destination + top * row_nbytes, source + (top + shift.down) * row_nbytes
    if image.pixel_nbytes == 1 and row_nbytes >= 8 and 0 < count < 8:
        if shift.right < 0:
            write_left_edges(written, read, n_rows, row_nbytes, count)
        else:
            write_right_edges(written, read, n_rows, row_nbytes, count)
    elif count > 0:
        for at in range(0, n_rows * row_nbytes, row_nbytes):
            write_edge(written + at, read + at, image, shift)
    for row in range(top):
        copy_inside(destination + row * row_nbytes, destination + top * row_nbytes, row_nbytes)
    for row in range(bottom, image.height):
        last = destination + (bottom - 1) * row_nbytes
        copy_inside(destination + row * row_nbytes, last, row_nbytes)


def copy_image(destination: int, source: int, nbytes: int, image: Image, shift: Shift) -> None:
    """Copy a frame on a CPU, image by image."""
    for at in range(0, nbytes, image.height * image.row_nbytes):
        copy_plane(destination + at, source + at, image, shift)


# On a GPU


def find_source_row(image: Image, shift: Shift, row: int) -> int:
    """Return the row of a frame that is written to a row."""
    top = divide(row, image.height_inverse) * image.height
    return top + min(max(row - top + shift.down, 0), image.height - 1)


def find_source_byte(image: Image, shift: Shift, at: int) -> int:
    """Return the offset of the byte that is written to an offset."""
    row = divide(at, image.row_inverse)
    column = at - row * image.row_nbytes
    found = column + shift.right
    channel = column % image.pixel_nbytes
    if found < 0:
        found = channel
    elif found >= image.row_nbytes:
        found = image.row_nbytes - image.pixel_nbytes + channel
    return find_source_row(image, shift, row) * image.row_nbytes + found


def plan_word(image: Image, shift: Shift, at: int, nbytes: int) -> Plan:
    """Return where the word at an offset comes from; it has at most two rows, and one edge."""
    row = divide(at, image.row_inverse)
    column = at - row * image.row_nbytes
    rest = image.row_nbytes - column  # bytes of the row from here on
    above = find_source_row(image, shift, row)
    source = above * image.row_nbytes + column + shift.right
    is_moved = 0 <= source <= nbytes - WORD
    if rest < WORD:
        is_moved = is_moved and find_source_row(image, shift, row + 1) == above + 1
    begin = rest - max(shift.right, 0)
    if column < -shift.right:
        begin = -column
    return Plan(source, begin, is_moved)


def find_edge(image: Image, shift: Shift, plan: Plan) -> Edge:
    """Return the edge of a word."""
    end = plan.begin + abs(shift.right)
    pixel_at = end if shift.right < 0 else plan.begin - image.pixel_nbytes
    is_inside = 0 <= pixel_at <= WORD - image.pixel_nbytes
    begin = min(max(plan.begin, 0), WORD)
    return Edge(begin, min(max(end, 0), WORD), pixel_at, is_inside)


def is_simple(plan: Plan, edge: Edge) -> bool:
    """Return whether one word of the source has all that a word is made of."""
    return plan.is_moved and (edge.begin >= edge.end or edge.is_inside)


def make_part(source: int, image: Image, shift: Shift, row: int, column: int) -> Word:
    """Return a word of which all bytes are of one row: the one from a column on, maybe below 0."""
    wanted = column + shift.right
    found = min(max(wanted, 0), image.row_nbytes - WORD)
    address = source + find_source_row(image, shift, row) * image.row_nbytes + found
    word = word_at(load_around(address), address)
    count = min(max(found - wanted, -WORD), WORD)  # above 0: so many bytes are left of the row
    pixel, phase = image.pixel_nbytes, column % image.pixel_nbytes
    begin, end, pixel_at = (0, count, 0) if count > 0 else (WORD + count, WORD, WORD - pixel)
    return fill_word(move_word(word, count), word, begin, end, pixel_at, phase, pixel)


def make_word(source: int, image: Image, shift: Shift, at: int) -> Word:
    """Return any word of a shifted image, made of its two rows."""
    row = divide(at, image.row_inverse)
    column = at - row * image.row_nbytes
    first = 0  # byte of the word with which the part begins
    word = no_word()
    while first < WORD:  # a loop, because the code for two parts at once takes more registers
        word = merge_words(word, make_part(source, image, shift, row, column), first)
        first = image.row_nbytes - column
        column -= image.row_nbytes
        row += 1
    return word


def put_word(
    destination: int, address: int, image: Image, shift: Shift, at: int, plan: Plan, around: Word
) -> None:
    """Write the word at an offset, if it is simple, of what was loaded around an address."""
    edge = find_edge(image, shift, plan)
    if is_simple(plan, edge):
        word = word_at(around, address)
        if edge.begin < edge.end:
            pixel = image.pixel_nbytes
            phase = at % pixel  # rows have whole pixels
            word = fill_word(word, word, edge.begin, edge.end, edge.pixel_at, phase, pixel)
        store_word(destination + at, word)


def copy_image_words(
    destination: int,
    source: int,
    nbytes: int,
    image: Image,
    shift: Shift,
    lane: int,
    lanes: int,
    mates: int,
) -> None:
    """Copy a lane's words of a shifted image: two are loaded before the first one is stored.

    Lanes hand words to each other in as many rounds for all of them, as in
    `row_share.copy_misaligned`; in the last round, some have no word to store.
    """
    step = lanes * WORD
    last = nbytes - WORD
    at = lane * WORD
    first = 0  # what `at` is for lane 0
    while first < nbytes:
        other = at + step
        plan = plan_word(image, shift, min(at, last), nbytes)
        other_plan = plan_word(image, shift, min(other, last), nbytes)
        # Of a word that is not simple, some other one is loaded, which is not used.
        address = source + min(max(plan.source, 0), last)
        other_address = source + min(max(other_plan.source, 0), last)
        own = load_own(address, is_handed(address, mates))
        other_own = load_own(other_address, is_handed(other_address, mates))
        around = take_around(own, mates)
        other_around = take_around(other_own, mates)
        if at < nbytes:
            put_word(destination, address, image, shift, at, plan, around)
        if other < nbytes:
            put_word(destination, other_address, image, shift, other, other_plan, other_around)
        at = other + step
        first += 2 * step
    at = lane * WORD
    while at < nbytes:  # apart from the others, which thus take fewer registers
        plan = plan_word(image, shift, at, nbytes)
        if not is_simple(plan, find_edge(image, shift, plan)):
            store_word(destination + at, make_word(source, image, shift, at))
        at += step


def copy_image_share(
    destination: int,
    source: int,
    nbytes: int,
    bits: int,
    image: Image,
    shift: Shift,
    lane: int,
    lanes: int,
    mates: int,
) -> None:
    """Copy a lane's share of a shifted frame on a GPU, as `row_share.copy_share` copies a row.

    Frames at multiples of 16 bytes are copied by words, if their rows are long enough for a word
    to have one edge at most. Others are copied byte by byte.
    """
    is_wide = image.row_nbytes >= WORD + image.most * image.pixel_nbytes
    if bits & 15 == 0 and is_wide and image.pixel_nbytes <= MOST_PIXEL_NBYTES:
        copy_image_words(destination, source, nbytes, image, shift, lane, lanes, mates)
    else:
        at = lane
        while at < nbytes:
            copy_1(destination + at, source + find_source_byte(image, shift, at))
            at += lanes


# What the functions for each side are made of, in the order of `DeviceEntry.parts`.
DRAW_PARTS = (philox, draw_below, draw_words, read_image, load_seed, draw_shift)
CPU_PARTS = (
    write_edge,
    write_left_edges,
    write_right_edges,
    copy_inside,
    copy_plane,
    copy_image,
)  # behind `copy_row`
GPU_PARTS = (
    *(
        divide,
        find_source_row,
        find_source_byte,
        plan_word,
        find_edge,
        is_simple,
        make_part,
        make_word,
    ),
    *(put_word, copy_image_words, copy_image_share),
)
