"""Random numbers as a function of a key and a counter: the same ones on every target, in any order.

There is no state that threads would have to share: the caller counts what it draws.
"""

from typing import NamedTuple

# From the paper: multipliers of the two products, and what is added to the key in each round.
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_N_ROUNDS = 10
_WORD = 0xFFFFFFFF

# Digits of 31 bits: sums of two products of them fit into an int64.
DIGIT_BITS = 31
_DIGIT = (1 << DIGIT_BITS) - 1


class Words(NamedTuple):
    """Four numbers in [0, 2**32)."""

    a: int
    b: int
    c: int
    d: int


class Key(NamedTuple):
    """The choice of a sequence of random numbers: two numbers in [0, 2**32)."""

    a: int
    b: int


def philox(counter: Words, key: Key) -> Words:
    """Return four random words: Philox4x32-10.

    All numbers are int64, and their products wrap: the 64 bits that are looked at are those of
    the unsigned product.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 5.3.
    """
    a, b, c, d = counter
    key_a, key_b = key
    for _ in range(_N_ROUNDS):
        product_0 = a * _MULTIPLIER_0
        product_1 = c * _MULTIPLIER_1
        a = ((product_1 >> 32) & _WORD) ^ b ^ key_a
        b = product_1 & _WORD
        c = ((product_0 >> 32) & _WORD) ^ d ^ key_b
        d = product_0 & _WORD
        key_a = (key_a + _WEYL_0) & _WORD
        key_b = (key_b + _WEYL_1) & _WORD
    return Words(a, b, c, d)


def draw_below(words: Words, limit: int) -> int:
    """Return an integer in [0, limit), made of two words; limit is in [1, 2**62).

    floor(u * limit) for u of 62 bits: a number's probability is off by less than 2**-62.
    """
    high, low = words.a >> 1, words.b >> 1
    limit_high, limit_low = limit >> DIGIT_BITS, limit & _DIGIT
    middle = high * limit_low + low * limit_high + ((low * limit_low) >> DIGIT_BITS)
    return high * limit_high + (middle >> DIGIT_BITS)
