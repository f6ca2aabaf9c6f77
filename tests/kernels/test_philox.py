"""Random numbers by counter: the published answers, ranges, and one body for all targets."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parllel.kernels import philox as philox_module
from parllel.kernels.philox import Key, Words, draw_below, philox
from parllel.kernels.targets import twin

MOST = 2**32 - 1
words = st.integers(0, MOST)

# Of the authors' own test, kat_vectors of Random123, lines "philox4x32 10".
ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MOST,) * 4, (MOST, MOST), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def fill(key_a: int, key_b: int, limit: int, out_words, out_drawn) -> None:
    for item in range(out_drawn.size):
        drawn = philox(Words(item, 1, 2, 3), Key(key_a, key_b))
        out_words[item, 0] = drawn.a
        out_words[item, 1] = drawn.b
        out_words[item, 2] = drawn.c
        out_words[item, 3] = drawn.d
        out_drawn[item] = draw_below(drawn, limit)


@pytest.mark.parametrize(("counter", "key", "expected"), ANSWERS)
def test_the_words_are_the_published_ones(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert philox(Words(*counter), Key(*key)) == expected


@given(a=words, b=words, limit=st.integers(1, 2**62 - 1))
@example(a=MOST, b=MOST, limit=2**62 - 1)
@example(a=MOST, b=MOST, limit=1)
def test_a_number_is_the_share_of_the_limit_that_62_bits_say(a: int, b: int, limit: int) -> None:
    share = (a >> 1 << 31) + (b >> 1)
    assert draw_below(Words(a, b, 0, 0), limit) == share * limit >> 62


def test_compiled_arithmetic_wraps_as_plain_python_does() -> None:
    signature = "void(int64, int64, int64, Array(int64, 2, 'C'), Array(int64, 1, 'C'))"
    compiled = twin(fill, signature, parts=(philox, draw_below))
    limit = 3 * 10**18
    drawn = np.zeros((500, 4), np.int64), np.zeros(500, np.int64)
    expected = np.zeros((500, 4), np.int64), np.zeros(500, np.int64)
    compiled(MOST, 5, limit, *drawn)
    fill(MOST, 5, limit, *expected)
    assert (drawn[0] == expected[0]).all()
    assert (drawn[1] == expected[1]).all()
    assert philox_module.DIGIT_BITS * 2 == 62
