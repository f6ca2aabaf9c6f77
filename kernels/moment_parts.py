"""Moments of parts of rows, and how they are merged: the bodies that CPU and GPU share."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from parllel.kernels.moment_layout import (
    M2,
    MEAN,
    OFFSET,
    SCALE,
    SHIFT,
    VARIANCE,
    Weights,
)

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


class Parts(NamedTuple):
    """Pointers to the moments of parts."""

    n: Floats  # numbers of the part
    mean: Floats  # minus SHIFT
    m2: Floats


class Part(NamedTuple):
    """The moments of one part."""

    n: np.float32
    mean: np.float32
    m2: np.float32


def summarize(n: np.float32, pivot: np.float32, total: np.float32, squares: np.float32) -> Part:
    """Return moments; `total` and `squares` are of deviations from the pivot."""
    inverse = np.float32(1) / n
    # No product is used twice: compilers would differ in whether they fuse it with a sum.
    return Part(n, pivot + total * inverse, squares - (total * total) * inverse)


def store(parts: Parts, at: int, part: Part) -> None:
    """Write a part to its place."""
    parts.n[at] = part.n
    parts.mean[at] = part.mean
    parts.m2[at] = part.m2


def merge_lane(parts: Parts, begin: int, stop: int, step: int) -> Part:
    """Return the moments of every step-th part from begin to stop together."""
    n = np.float32(0)
    total = np.float32(0)
    at = begin
    while at < stop:
        n += parts.n[at]
        total += parts.n[at] * parts.mean[at]
        at += step
    pivot = total * (np.float32(1) / n)
    total = np.float32(0)
    squares = np.float32(0)
    at = begin
    while at < stop:
        deviation = parts.mean[at] - pivot
        total += parts.n[at] * deviation
        squares += parts.m2[at] + parts.n[at] * (deviation * deviation)
        at += step
    return summarize(n, pivot, total, squares)


def weigh(n_before: int, n_rows: int) -> Weights:
    """Return the weights for merging n_rows rows into n_before."""
    n_all = np.float32(n_before + n_rows)
    weight = np.float32(n_rows) / n_all
    return Weights(weight, np.float32(n_before) * weight, np.float32(1) / n_all)


class Kept(NamedTuple):
    """Pointers to what is known of earlier rows, and whether it counts."""

    numbers: Floats  # [N_KEPT, width]
    counts: Counts  # rows of each feature
    begins_anew: int


class NewRows(NamedTuple):
    """What an update is given beside the moments of its rows."""

    values: Floats  # a pointer to the rows
    n_rows: int
    epsilon: np.float32


def count_before(kept: Kept, feature: int) -> int:
    """Return how many rows of a feature are merged already."""
    return int(0 if kept.begins_anew else kept.counts[feature])


def find_shift(values: Floats, kept: Kept, feature: int) -> np.float32:
    """Return the number that a feature's deviations are counted from: the first one ever seen."""
    return np.float32(kept.numbers[feature] if count_before(kept, feature) > 0 else values[feature])


def update_feature(
    new: Part, feature: int, n_features: int, width: int, kept: Kept, rows: NewRows
) -> None:
    """Merge a feature's new moments into those that are kept, and write all copies of these."""
    n_before, numbers = count_before(kept, feature), kept.numbers
    origin = find_shift(rows.values, kept, feature)
    by = weigh(n_before, rows.n_rows)
    kept.counts[feature] = n_before + rows.n_rows
    old_offset = numbers[OFFSET * width + feature] if n_before > 0 else np.float32(0)
    old_m2 = numbers[M2 * width + feature] if n_before > 0 else np.float32(0)
    change = new.mean - old_offset
    offset = old_offset + change * by.weight
    m2 = (old_m2 + new.m2) + (change * change) * by.cross
    variance = m2 * by.inverse
    deviation = np.float32(math.sqrt(variance)) + rows.epsilon
    scale = np.float32(0) if deviation == 0 else np.float32(1) / deviation
    lane = feature
    while lane < width:
        numbers[SHIFT * width + lane] = origin
        numbers[OFFSET * width + lane] = offset
        numbers[M2 * width + lane] = m2
        numbers[SCALE * width + lane] = scale
        numbers[MEAN * width + lane] = origin + offset
        numbers[VARIANCE * width + lane] = variance
        lane += n_features
