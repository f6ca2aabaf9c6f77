"""Arithmetic of float32 in all of IEEE's directions of rounding, by way of float64.

A sum or product is first rounded to odd in float64: where it is inexact, its last bit is set. Such
a number rounds to float32 in every direction as the exact one would.

Source: Boldo and Melquiond 2008, IEEE Trans. Comput. 57(4), "Emulation of FMA and correctly rounded
sums: proved algorithms using rounding to odd".
"""

import numpy as np
import numpy.typing as npt

Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

ROUNDINGS = ("rn", "rz", "rm", "rp")  # to nearest even, to zero, down, up


def add(a: Singles, b: Singles, rounding: str = "rn") -> Singles:
    """Return a + b."""
    return round_to(_add_to_odd(a.astype(np.float64), b.astype(np.float64)), rounding)


def multiply(a: Singles, b: Singles, rounding: str = "rn") -> Singles:
    """Return a * b; float64 holds the product exactly."""
    return round_to(a.astype(np.float64) * b.astype(np.float64), rounding)


def multiply_add(a: Singles, b: Singles, c: Singles, rounding: str = "rn") -> Singles:
    """Return a * b + c, rounded once."""
    product = a.astype(np.float64) * b.astype(np.float64)
    return round_to(_add_to_odd(product, c.astype(np.float64)), rounding)


def round_to(exact: Doubles, rounding: str) -> Singles:
    """Return float32 of numbers that are exact, or rounded to odd."""
    nearest = exact.astype(np.float32)
    if rounding == "rn":
        return nearest
    is_above, is_below = nearest > exact, nearest < exact
    if rounding == "rz":
        is_above, is_below = is_above & (exact > 0), is_below & (exact < 0)
    elif rounding == "rm":
        is_below = np.zeros_like(is_below)
    else:
        is_above = np.zeros_like(is_above)
    nearest = np.where(is_above, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    return np.where(is_below, np.nextafter(nearest, np.float32(np.inf)), nearest)


def _add_to_odd(a: Doubles, b: Doubles) -> Doubles:
    total = a + b
    # What rounding took away (Knuth's two-sum); NaN where a number is infinite.
    part = total - a
    rest = (a - (total - part)) + (b - part)
    bits = total.view(np.int64)
    is_even = (bits & 1) == 0
    is_inexact = np.isfinite(rest) & (rest != 0)
    # The neighbour on the side of the exact sum; its last bit is odd where this one's is even.
    away = np.where((rest > 0) == (total > 0), bits + 1, bits - 1)
    return np.where(is_inexact & is_even, away, bits).view(np.float64)
