"""The numbers that are kept of a feature, and how the numbers of rows are divided among threads."""

import functools
import math
from typing import NamedTuple

import numpy as np

from parllel.kernels.array_checks import Shaped, check_shape

LANES = 128  # numbers side by side: a GPU joins their loads, a CPU takes them in vectors
LENGTH = 32  # numbers of a lane: few, for many threads; 128 lanes of them fit into a CPU's L1
FEWEST_TO_GROUP = 257  # parts of a feature; one thread merges fewer, which saves a launch

# The numbers that are kept of a feature. Deviations are counted from the first number that was ever
# seen, or else a large mean would leave no digits for a small variance.
SHIFT = 0  # that number
OFFSET = 1  # mean - SHIFT
M2 = 2  # sum of squared deviations from the mean
SCALE = 3  # 1 / (standard deviation + epsilon), or 0 for 1 / 0
MEAN = 4
VARIANCE = 5
N_KEPT = 6

N_PLANES = 3  # of what is known of a part: how many numbers, mean, M2


class Layout(NamedTuple):
    """How numbers are divided among lanes: alike on all targets, as roundings depend on it.

    The numbers of all rows, one after the other, are cut into blocks of LENGTH lines of `width`
    numbers. A lane is a column of a block, and has one part of a feature's numbers.
    """

    size: int  # numbers in all
    n_features: int
    width: int  # a multiple of n_features
    n_parts: int  # lanes in all, a multiple of n_features
    n_groups: int  # lanes that merge the parts to larger ones; 0 where one step will do

    @property
    def n_scratch(self) -> int:
        """Number of parts that are kept until they are merged."""
        return self.n_parts + self.n_groups


def count_copies(n_features: int) -> int:
    """Return how many rows make a line; what is kept of a feature is kept as often."""
    return max(1, LANES // max(1, n_features))


@functools.lru_cache(maxsize=256)
def lay_out(n_rows: int, n_features: int) -> Layout:
    """Return the layout of float32 [n_rows, n_features], neither of them 0."""
    size, width = n_rows * n_features, count_copies(n_features) * n_features
    last_block = (size - 1) // (LENGTH * width)
    n_parts = last_block * width + min(width, size - last_block * LENGTH * width)
    parts_of_feature = n_parts // n_features
    is_grouped = parts_of_feature >= FEWEST_TO_GROUP
    n_groups = math.isqrt(parts_of_feature) * n_features if is_grouped else 0
    return Layout(size, n_features, width, n_parts, n_groups)


class Weights(NamedTuple):
    """Weights of old and new rows in a merge."""

    weight: np.float32  # new / all
    cross: np.float32  # old * new / all
    inverse: np.float32  # 1 / all


def check_update(rows: Shaped, kept: Shaped, counts: Shaped, scratch: Shaped) -> None:
    """Raise ValueError if the shapes of arrays of NumPy or CuPy do not go together."""
    if rows.ndim != 2:
        raise ValueError(f"rows: shape {rows.shape}, expected two axes, (n_rows, F)")
    n_features = rows.shape[1]
    expected = (N_KEPT, count_copies(n_features), n_features)
    check_shape("out_kept", kept, expected, "(N_KEPT, count_copies(F), F)")
    check_shape("out_counts", counts, (n_features,), "(F,)")
    n_scratch = lay_out(*rows.shape).n_scratch
    if scratch.ndim != 2 or scratch.shape[0] != N_PLANES or scratch.shape[1] < n_scratch:
        raise ValueError(
            f"out_scratch: shape {scratch.shape}, expected ({N_PLANES}, {n_scratch}) or longer"
        )
