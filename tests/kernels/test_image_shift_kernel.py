"""Random shifts of images: the CPU twin, the grid and the compiled grid, held against NumPy."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_frames_kernel import Case as Gather
from test_frames_kernel import address_of, place, stack_of

from copied_bytes import CopiedBytes
from lanes import launch_lanes
from parllel.kernels import frames_on_grid as kernel
from parllel.kernels import words
from parllel.kernels.frames import gather_stacks
from parllel.kernels.image_shift import FIRST_STREAM, Image, divide, draw_shift, make_image
from parllel.kernels.philox import Key, Words, draw_below, philox
from parllel.kernels.targets import Axes, twin
from parllel.kernels.teams import Teams
from parllel.kernels.transitions import N_TRIES, Seed
from parllel.ops.stack_gather import RowSource

# Height, width and bytes of a pixel: rows that are words or not, with edges longer than a word.
SHAPES = ((8, 84, 1), (12, 36, 1), (4, 20, 4), (16, 12, 3), (8, 64, 9), (4, 40, 16), (3, 2, 1))
ODD_SHAPES = ((7, 13, 1), (5, 9, 3), (9, 33, 1), (6, 5, 17))


class Case(NamedTuple):
    """A gather of leaves, some of which are shifted."""

    gather: Gather
    seed: Seed

    def expect(self) -> list[npt.NDArray[Any]]:
        expected = [output.copy() for output in self.gather.outputs]
        for source, output in zip(self.gather.sources, expected, strict=True):
            for number, row in enumerate(self.gather.index):
                stack = stack_of(source, int(row))
                if source.image.most:
                    stack = shift_plainly(stack, source.image, self.seed, number)
                output[number] = stack
        return expected


def shift_plainly(stack: npt.NDArray[Any], image: Image, seed: Seed, item: int) -> npt.NDArray[Any]:
    """Pad all images of a stack by their edges, and cut a window out."""
    counter = Words(item, FIRST_STREAM + image.stream, seed.number & 0xFFFFFFFF, seed.number >> 32)
    a, b, c, d = philox(counter, Key(seed.key_a, seed.key_b))
    n_places = 2 * image.most + 1
    top, left = (draw_below(Words(*each, 0, 0), n_places) for each in ((a, b), (c, d)))
    width = image.row_nbytes // image.pixel_nbytes
    pixels = stack.reshape(-1, image.height, width, image.pixel_nbytes)
    pad = (image.most, image.most)
    padded = np.pad(pixels, ((0, 0), pad, pad, (0, 0)), mode="edge")
    return padded[:, top : top + image.height, left : left + width].reshape(stack.shape)


@st.composite
def cases(
    draw: st.DrawFn,
    shapes: tuple[tuple[int, int, int], ...] = SHAPES + ODD_SHAPES,
    most_rows: int = 9,
) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_columns, n_steps = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    n_rows = n_columns * n_steps
    sources, outputs = [], []
    index = rng.integers(0, n_rows, draw(st.integers(1, most_rows)))
    for number in range(draw(st.integers(1, 2))):
        height, width, nbytes = draw(st.sampled_from(shapes))
        n_images, most = draw(st.integers(1, 2)), draw(st.integers(1, min(height, width, 9) - 1))
        sizes = {"height": height, "width": width, "pixel_nbytes": nbytes, "n_images": n_images}
        image = make_image(most=most, stream=draw(st.integers(0, 1)), **sizes)
        if number and draw(st.booleans()):
            image = Image()
        stack = draw(st.integers(1, 3))
        n_before = (stack - 1) * n_columns
        shape = (n_before + n_rows, n_images, height, width, nbytes)
        offset = draw(st.sampled_from([0, 0, 1]))
        frames = place(rng.integers(0, 256, shape, np.uint8), offset)
        flags = place(rng.random(n_before + n_rows) < 0.3, 0)
        blank = place(np.full((1, *shape[1:]), 9, np.uint8), 0) if draw(st.booleans()) else None
        source = RowSource(
            frames[n_before:], flags[n_before:], n_columns, stack, blank, image=image
        )
        if draw(st.booleans()):
            source = RowSource(frames[n_before:], image=image)
        sources.append(source)
        outputs.append(place(np.zeros((len(index) + 1, *source.shape[1:]), np.uint8), 0))
    seed = Seed(*rng.integers(0, 2**32, 2).tolist(), int(rng.integers(0, 2**40)))
    return Case(Gather(sources, outputs, index), seed)


@given(case=cases())
def test_images_are_windows_of_padded_ones(case: Case) -> None:
    expected = case.expect()
    seed = np.array(case.seed)
    gather_stacks(case.gather.table(), case.gather.index, seed=address_of(seed))
    for output, right in zip(case.gather.outputs, expected, strict=True):
        np.testing.assert_array_equal(output, right)


def launch(case: Case, grid: Axes, block: Axes, bits: int, n_riders: int) -> None:
    """Run the entry for GPUs; hold what is written, and that each byte is written once."""
    gather, expected, table = case.gather, case.expect(), case.gather.table()
    copied = CopiedBytes([part for source in gather.sources for part in readable(source)])
    teams = Teams(1, len(table.entries) - 1, bits, 0, n_riders)
    most, seed = max(source.stack for source in gather.sources), np.array(case.seed)
    vector = np.asarray(gather.index)
    arguments = [
        table.address,
        0,
        len(vector),
        address_of(vector),
        0,
        0,
        most,
        address_of(seed),
        *teams,
    ]
    launch_lanes(kernel.SHIFTED, arguments, copied, grid=grid, block=block)
    written: Counter[int] = Counter()
    for output, right in zip(gather.outputs, expected, strict=True):
        np.testing.assert_array_equal(output, right)
        part = output[: len(vector)]
        written.update(range(address_of(part), address_of(part) + part.nbytes))
    assert copied.n_writes == written


@given(
    case=cases(most_rows=2),
    n_blocks=st.integers(1, 3),
    n_threads=st.integers(1, 7),
    bits=st.integers(0, 2),
    n_riders=st.integers(0, 3),
)
def test_a_grid_of_any_shape_writes_each_byte_once(
    case: Case, n_blocks: int, n_threads: int, bits: int, n_riders: int
) -> None:
    launch(case, Axes(n_blocks, 1), Axes(n_threads, 1), bits, n_riders)


@pytest.mark.parametrize("bits", [2, 5, 6])
def test_lanes_hand_words_over_when_none_is_left_for_them(bits: int) -> None:
    """A frame of 42 words; a round has two for each lane."""
    rng, shape = np.random.default_rng(bits), (1, 8, 84, 1)
    image = make_image(most=4, height=8, width=84, pixel_nbytes=1, stream=0)
    frames = place(rng.integers(0, 256, (3, *shape), np.uint8), 0)
    index = rng.integers(0, 3, 3)
    output = place(np.zeros((len(index), *shape), np.uint8), 0)
    case = Case(Gather([RowSource(frames, image=image)], [output], index), Seed(1, 2, bits))
    launch(case, Axes(1, 1), Axes(1 << bits, 1), bits, 0)


@pytest.mark.long  # it is compiled first
@given(case=cases())
def test_the_compiled_grid_does_the_same(case: Case) -> None:
    """With the instructions for words that a GPU gets, but for the kind of memory."""
    gather, expected, table = case.gather, case.expect(), case.gather.table()
    entry = twin(kernel.SHIFTED.entry, kernel.SHIFTED.signature, parts=kernel.SHIFTED.parts)
    most, vector = max(source.stack for source in gather.sources), np.asarray(gather.index)
    seed = np.array(case.seed)
    teams = Teams(len(table.entries), 0, 0, 0, 0)
    entry(table.address, 0, len(vector), address_of(vector), 0, 0, most, address_of(seed), *teams)
    for output, right in zip(gather.outputs, expected, strict=True):
        np.testing.assert_array_equal(output, right)


def readable(source: RowSource) -> list[tuple[int, int]]:
    """Return where frames lie: with those before the first row, and the blank one."""
    frames, n_before = source.frames, (source.stack - 1) * source.n_columns
    begin = address_of(frames)
    parts = [(begin - n_before * frames.strides[0], begin + frames.nbytes)]
    if source.blank is not None:
        parts.append((address_of(source.blank), address_of(source.blank) + source.blank.nbytes))
    return parts


# Words


@given(
    word=st.binary(min_size=16, max_size=16),
    pixels=st.binary(min_size=16, max_size=16),
    numbers=st.tuples(st.integers(0, 16), st.integers(0, 16), st.integers(1, 16)),
    count=st.integers(-16, 16),
    data=st.data(),
)
def test_words_are_those_of_a_loop_over_bytes(
    word: bytes, pixels: bytes, numbers: tuple[int, int, int], count: int, data: st.DataObject
) -> None:
    begin, end, size = numbers
    pixel_at, phase = data.draw(st.integers(0, 16 - size)), data.draw(st.integers(0, size - 1))
    filled = bytearray(word)
    for at in range(begin, end):
        filled[at] = pixels[pixel_at + (phase + at) % size]
    assert words.fill_word(word, pixels, begin, end, pixel_at, phase, size) == bytes(filled)
    moved = bytes(word[at - count] if 0 <= at - count < 16 else 0 for at in range(16))
    assert words.move_word(word, count) == moved
    merged = bytes(word[at] if at < begin else pixels[at] for at in range(16))
    assert words.merge_words(word, pixels, begin) == merged


# Draws and sizes


def test_all_shifts_come_equally_often() -> None:
    image, n = make_image(most=2, height=9, width=9, pixel_nbytes=3, stream=0), 5000
    counts = Counter(draw_shift(image, Seed(1, 2, 3), item) for item in range(n))
    assert {down for down, _ in counts} == set(range(-2, 3))
    assert {right for _, right in counts} == {-6, -3, 0, 3, 6}
    assert len(counts) == 25
    chances = n / 25
    # 24 degrees of freedom: above 51.2 once in a thousand seeds.
    assert sum((count - chances) ** 2 / chances for count in counts.values()) < 51.2


def test_shifts_share_no_counter_with_draws_of_transitions() -> None:
    assert FIRST_STREAM > N_TRIES
    seed, item = Seed(1, 2, 3), 4
    image = make_image(most=4, height=84, width=84, pixel_nbytes=1, stream=0)
    shifts = [draw_shift(image._replace(stream=stream), seed, item) for stream in range(8)]
    assert len(set(shifts)) > 4


@given(number=st.integers(0, 2**22), size=st.integers(2, 2**17))
def test_inverses_divide_exactly(number: int, size: int) -> None:
    image = make_image(most=1, height=2, width=size, pixel_nbytes=1, stream=0)
    assert divide(number, image.row_inverse) == number // size


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"most": 0}, "got up to 0 pixels"),
        ({"most": 8}, "got up to 8 pixels of images of 8 x 9"),
        ({"height": 2**20, "width": 2**12}, "expected their bytes times those of a row"),
    ],
)
def test_images_that_can_not_be_shifted_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_image(**{"most": 2, "height": 8, "width": 9, "pixel_nbytes": 1, "stream": 0, **sizes})
