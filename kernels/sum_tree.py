"""A tree of sums over many numbers: one is changed, or found by its share, in a few steps.

The numbers are integers, and so are the sums: they are exact, in whatever order they are changed,
and never drift. A priority becomes an integer when it gets in.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from parllel.kernels.addresses import add_int64, exchange_int64, load_int64, raise_int64

# Children of a node. 16 integers are two cache lines of a CPU, and four sectors of a GPU.
FAN_OUT = 16
_FAN_OUT_BITS = 4

# A priority of 1. Priorities are rounded down to multiples of 2**-24.
ONE = 1 << 24
# Sums stay below it, so that they can be shared out by `draw_below`.
_SUM_LIMIT = 1 << 62

# A number that was a float32 is an exponent and 24 binary digits.
_DIGITS = 24
_EXPONENT_BITS = 6
_MOST_PACKED = (1 << (_DIGITS + _EXPONENT_BITS)) - 1
_MOST_PERIOD = (1 << 33) - 1


class SumTree(NamedTuple):
    """Where the tree lies: addresses of int64 numbers.

    Level 0 holds the numbers, each level above it the sums of 16 neighbours below, and the last
    one the sum of all.
    """

    sums: int  # of all levels
    offsets: int  # where in `sums` each level begins
    n_levels: int
    largest: int  # one number: the largest that leaves were given lately (`pack_largest`)


def lay_out(n_leaves: int) -> npt.NDArray[np.int64]:
    """Return where the levels begin, and behind them the size of all: int64 [n_levels + 1]."""
    sizes: list[int] = []
    n_nodes = n_leaves
    while n_nodes > 1 or not sizes:
        groups = -(-n_nodes // FAN_OUT)
        sizes.append(groups * FAN_OUT)
        n_nodes = groups
    return np.cumsum([0, *sizes, 1])


def find_limit(n_leaves: int) -> np.float32:
    """Return the largest number that a leaf may have, as float32."""
    return np.float32(_SUM_LIMIT // (2 * n_leaves))


def to_number(priority: np.float32, limit: np.float32) -> int:
    """Return the integer of a priority: 1 or more, at most the limit; it has 24 binary digits."""
    scaled = priority * np.float32(ONE)
    return max(1, int(scaled)) if scaled < limit else int(limit)


def read_total(tree: SumTree) -> int:
    """Return the sum of all numbers."""
    return load_int64(tree.sums + load_int64(tree.offsets + (tree.n_levels - 1) * 8) * 8)


def read_leaf_number(tree: SumTree, leaf: int) -> int:
    """Return a leaf's number."""
    return load_int64(tree.sums + leaf * 8)


def change_leaf(tree: SumTree, leaf: int, number: int) -> None:
    """Give a leaf another number, and add the difference to all sums above it.

    Many threads may do that at once, also to the same leaf: the sums are right when all are done.
    """
    difference = number - exchange_int64(tree.sums + leaf * 8, number)
    node = leaf
    for level in range(1, tree.n_levels):
        node = node >> _FAN_OUT_BITS
        offset = load_int64(tree.offsets + level * 8)
        add_int64(tree.sums + (offset + node) * 8, difference)


def pack_largest(period: int, number: int) -> int:
    """Return one integer for a period and a number; it is larger for a later period.

    So a maximum of such integers is that of the latest period, whatever came before: it forgets,
    and threads that take it need not agree on when a period begins.

    Args:
        period: 0 or more, below 2**33.
        number: what `to_number` returned.
    """
    exponent = 0
    step = 32
    while step > 0:
        if number >> (_DIGITS - 1 + step) != 0:
            number = number >> step
            exponent += step
        step = step >> 1
    return (((period << _EXPONENT_BITS) | exponent) << _DIGITS) | number


def unpack_largest(packed: int) -> int:
    """Return the number that was packed."""
    exponent = (packed >> _DIGITS) & ((1 << _EXPONENT_BITS) - 1)
    return (packed & ((1 << _DIGITS) - 1)) << exponent


def raise_largest(tree: SumTree, period: int, number: int) -> None:
    """Let a number count for the largest one of a period; many threads may do that at once."""
    raise_int64(tree.largest, pack_largest(period, number))


def read_largest(tree: SumTree) -> int:
    """Return the largest number of the latest period."""
    return max(1, unpack_largest(load_int64(tree.largest)))


def pack_smallest(period: int, number: int) -> int:
    """Return one integer for a period and a number: larger for a later period or a smaller number.

    So a maximum is that of the smallest number of the latest period, as for `pack_largest`.
    """
    return pack_largest(period, 0) | (_MOST_PACKED - pack_largest(0, number))


def lower_smallest(smallest: int, period: int, number: int) -> None:
    """Let a number count for the smallest one of a period; many threads may do that at once.

    Args:
        smallest: address of the packed integer.
        period: counted on; its low 33 bits are.
        number: what `to_number` returned, or 0.
    """
    raise_int64(smallest, pack_smallest(period & _MOST_PERIOD, number))


def read_smallest(smallest: int) -> int:
    """Return the smallest number of the latest period; its packed integer is at an address."""
    return unpack_largest(_MOST_PACKED - (load_int64(smallest) & _MOST_PACKED))


def find_leaf(tree: SumTree, target: int) -> int:
    """Return the leaf in which a target lies: the sum before it is at most the target.

    Args:
        tree: with a sum above the target.
        target: from 0 on.
    """
    node = 0
    level = tree.n_levels - 2
    while level >= 0:
        node = node * FAN_OUT
        first = tree.sums + (load_int64(tree.offsets + level * 8) + node) * 8
        total = 0
        before = 0
        child = 0
        for number in range(FAN_OUT - 1):  # without a branch, so that no load waits for another
            total += load_int64(first + number * 8)
            is_behind = target >= total
            child += 1 if is_behind else 0
            before = total if is_behind else before
        target -= before
        node += child
        level -= 1
    return node


PARTS = (
    to_number,
    read_total,
    read_leaf_number,
    change_leaf,
    pack_largest,
    unpack_largest,
    raise_largest,
    read_largest,
    pack_smallest,
    lower_smallest,
    find_leaf,
)
