"""Mean and variance of rows, and their merge with those of earlier rows: kernels and CPU twin.

Three kernels, for one thing: the moments of many parts of the rows (`MEASURE`), those of fewer,
larger parts (`MERGE`, where there are many), and the merge into what is kept (`UPDATE`).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from parllel.kernels.array_checks import (
    are_native,
    check_dtype,
    check_is_ndarray,
    check_layout,
    check_output,
    is_aligned,
    is_apart,
)
from parllel.kernels.moment_layout import LENGTH, N_KEPT, check_update, lay_out
from parllel.kernels.moment_parts import (
    Counts,
    Floats,
    Kept,
    NewRows,
    Part,
    Parts,
    count_before,
    find_shift,
    merge_lane,
    store,
    summarize,
    update_feature,
    weigh,
)
from parllel.kernels.targets import CpuKernel, DeviceEntry, cuda, pointer_to


def update_moments(
    rows: Floats,
    *,
    begins_anew: bool,
    epsilon: float,
    out_kept: Floats,
    out_counts: Counts,
    out_scratch: Floats,
) -> None:
    """Merge mean and variance of rows into those of earlier rows, for each feature.

    For the moments a of n earlier rows and b of k new ones:

    d = mean_b - mean_a
    mean = mean_a + d * k / (n + k)
    M2 = M2_a + M2_b + d**2 * n * k / (n + k),  variance = M2 / (n + k)

    The moments of the new rows are merged from those of parts in the same way. Of each part the
    mean is computed first, then the deviations from it; their sum corrects the mean's rounding.

    A NaN or an infinity makes NaN of all moments of its feature, now and after later updates.
    Numbers whose deviations' squares overflow or underflow float32 give wrong moments. Runs in
    the calling thread, without the GIL, and allocates nothing. All arrays are C-contiguous and in
    host memory.

    Args:
        rows: float32 [n_rows, F]; with no row or no feature nothing is written.
        begins_anew: whether these rows are the first ones, whatever `out_kept` holds.
        epsilon: float of 0 or more, added to the standard deviation for the scale.
        out_kept: float32 [N_KEPT, count_copies(F), F], updated: SHIFT, OFFSET, M2, SCALE, MEAN,
            VARIANCE of each feature, all copies alike.
        out_counts: int64 [F], the rows merged before, updated; all alike.
        out_scratch: float32 [N_PLANES, lay_out(n_rows, F).n_scratch or more], overwritten.

    Raises:
        TypeError: an array is no numpy.ndarray.
        ValueError: an array has another dtype, shape or layout, is read-only or overlaps another
            one. Nothing has been written then.

    Source: Chan, Golub, LeVeque 1979, STAN-CS-79-773, eq. 2.1 (the merge); the same, The American
        Statistician 37 (1983), eq. 1.7 (the parts).
    Error: with c = (512 + sqrt(n_rows) / 2 + 8 * abs(mean - SHIFT) / deviation) * 2**-24, of
        the first update, at most c * variance for the variance, and c * deviation plus
        2**-24 * abs(mean) for the mean (`test_moments_are_those_of_double_precision`).
    """
    if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.size == 0:
        return
    mismatch = None
    try:
        _, _, width, n_parts, n_groups = lay_out(*rows.shape)
        arrays = (rows, out_kept, out_counts, *out_scratch)
        is_written = are_native(rows, out_kept, out_counts, out_scratch) and _ON_CPU.compiled(
            *arrays, width, n_parts, n_groups, int(begins_anew), np.float32(epsilon)
        )
    except (TypeError, ValueError, AttributeError) as error:  # raised before anything is written
        is_written, mismatch = False, error
    if not is_written:
        _explain_refusal(rows, out_kept, out_counts, out_scratch)
        raise AssertionError("the compiled entry refuses what no check finds wrong") from mismatch


def measure_lane(
    values: Floats, begin: int, stop: int, width: int, lane: int, shift: np.float32
) -> Part:
    """Return the moments of a lane of the block that lies from begin to stop."""
    first = values[begin + lane]
    n = np.float32(0)
    total = np.float32(0)
    at = begin + lane
    while at < stop:  # `range` with such a step would divide
        n += np.float32(1)
        total += values[at] - first
        at += width
    pivot = first + total * (np.float32(1) / n)
    total = np.float32(0)
    squares = np.float32(0)
    at = begin + lane
    while at < stop:
        deviation = values[at] - pivot
        total += deviation
        squares += deviation * deviation
        at += width
    return summarize(n, pivot - shift, total, squares)


def measure_block(
    values: Floats,
    begin: int,
    stop: int,
    width: int,
    n_features: int,
    shift: Floats,
    parts: Parts,
    first_part: int,
) -> None:
    """Write the moments of all lanes of a block, line by line: what `measure_lane` returns.

    Until the moments are known, a part's place holds sums: of deviations as `n`, of their
    squares as `m2`, and as `mean` first a sum and then the pivot.
    """
    n_lanes = min(width, stop - begin)
    n_lines, n_longer = (stop - begin) // width, (stop - begin) % width
    for lane in range(n_lanes):
        store(parts, first_part + lane, Part(np.float32(0), np.float32(0), np.float32(0)))
    for line in range(begin, stop, width):
        for lane in range(min(width, stop - line)):
            parts.mean[first_part + lane] += values[line + lane] - values[begin + lane]
    for lane in range(n_lanes):
        inverse = np.float32(1) / np.float32(n_lines + (lane < n_longer))
        pivot = values[begin + lane] + parts.mean[first_part + lane] * inverse
        parts.mean[first_part + lane] = pivot
    for line in range(begin, stop, width):
        for lane in range(min(width, stop - line)):
            deviation = values[line + lane] - parts.mean[first_part + lane]
            parts.n[first_part + lane] += deviation
            parts.m2[first_part + lane] += deviation * deviation
    for lane in range(n_lanes):
        at = first_part + lane
        n = np.float32(n_lines + (lane < n_longer))
        pivot = parts.mean[at] - shift[lane % n_features]
        store(parts, at, summarize(n, pivot, parts.n[at], parts.m2[at]))


def measure_on_grid(
    values: Floats,
    size: int,
    n_features: int,
    width: int,
    kept: Floats,
    counts: Counts,
    begins_anew: int,
    n: Floats,
    mean: Floats,
    m2: Floats,
) -> None:
    """Write the moments of all parts. Grid (blocks, lanes), block (lanes, blocks of numbers)."""
    parts, known = Parts(n, mean, m2), Kept(kept, counts, begins_anew)
    block = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    while block * LENGTH * width < size:
        begin = block * LENGTH * width
        stop = min(begin + LENGTH * width, size)
        lane = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        while lane < min(width, stop - begin):
            shift = find_shift(values, known, lane % n_features)
            part = measure_lane(values, begin, stop, width, lane, shift)
            store(parts, block * width + lane, part)
            lane += cuda.gridDim.y * cuda.blockDim.x
        block += cuda.gridDim.x * cuda.blockDim.y


def merge_on_grid(n: Floats, mean: Floats, m2: Floats, n_parts: int, n_groups: int) -> None:
    """Write the moments of all groups behind those of the parts. A grid with one axis."""
    parts = Parts(n, mean, m2)
    group = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while group < n_groups:
        store(parts, n_parts + group, merge_lane(parts, group, n_parts, n_groups))
        group += cuda.gridDim.x * cuda.blockDim.x


def update_on_grid(
    n: Floats,
    mean: Floats,
    m2: Floats,
    begin: int,
    stop: int,
    n_features: int,
    width: int,
    values: Floats,
    kept: Floats,
    counts: Counts,
    n_rows: int,
    begins_anew: int,
    epsilon: np.float32,
) -> None:
    """Merge the parts from begin to stop into what is kept. A grid with one axis."""
    parts, known = Parts(n, mean, m2), Kept(kept, counts, begins_anew)
    rows = NewRows(values, n_rows, epsilon)
    feature = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while feature < n_features:
        new = merge_lane(parts, begin + feature, stop, n_features)
        update_feature(new, feature, n_features, width, known, rows)
        feature += cuda.gridDim.x * cuda.blockDim.x


_FLOATS = "CPointer(float32)"
_PARTS = f"{_FLOATS}, {_FLOATS}, {_FLOATS}"
_KEPT = f"{_FLOATS}, CPointer(int64)"
MEASURE = DeviceEntry(
    "moments",
    measure_on_grid,
    f"void({_FLOATS}, int64, int64, int64, {_KEPT}, int64, {_PARTS})",
    (count_before, find_shift, summarize, store, measure_lane),
)
MERGE = DeviceEntry(
    "merge_moments", merge_on_grid, f"void({_PARTS}, int64, int64)", (summarize, store, merge_lane)
)
UPDATE = DeviceEntry(
    "update_moments",
    update_on_grid,
    f"void({_PARTS}, int64, int64, int64, int64, {_FLOATS}, {_KEPT}, int64, int64, float32)",
    (count_before, find_shift, weigh, summarize, merge_lane, update_feature),
)


def update_checked(
    rows: Floats,
    kept: Floats,
    counts: Counts,
    n: Floats,
    mean: Floats,
    m2: Floats,
    width: int,
    n_parts: int,
    n_groups: int,
    begins_anew: int,
    epsilon: np.float32,
) -> bool:
    """Check all that the types leave open, then do what the kernels do; return if checks passed."""
    n_features = rows.shape[1]
    fits = kept.shape == (N_KEPT, width // n_features, n_features) and counts.size == n_features
    if not (fits and n.size >= n_parts + n_groups):
        return False
    for plane in (n, mean, m2):
        if not (is_apart(rows, plane) and is_apart(kept, plane) and is_apart(counts, plane)):
            return False
    if not (is_apart(rows, kept) and is_apart(rows, counts) and is_apart(kept, counts)):
        return False
    if not (is_aligned(rows) and is_aligned(kept) and is_aligned(counts) and is_aligned(n)):
        return False
    parts = Parts(pointer_to(n), pointer_to(mean), pointer_to(m2))
    values = pointer_to(rows)
    known = Kept(pointer_to(kept), pointer_to(counts), begins_anew)
    shift = known.numbers if count_before(known, 0) > 0 else values
    for begin in range(0, rows.size, LENGTH * width):
        stop = min(begin + LENGTH * width, rows.size)
        measure_block(values, begin, stop, width, n_features, shift, parts, begin // LENGTH)
    for group in range(n_groups):
        store(parts, n_parts + group, merge_lane(parts, group, n_parts, n_groups))
    begin = n_parts if n_groups > 0 else 0
    new_rows = NewRows(values, len(rows), epsilon)
    for feature in range(n_features):
        new = merge_lane(parts, begin + feature, n_parts + n_groups, n_features)
        update_feature(new, feature, n_features, width, known, new_rows)
    return True


_PLANE = "Array(float32, 1, 'C')"
_ON_CPU = CpuKernel(
    update_checked,
    "boolean(Array(float32, 2, 'C', readonly=True), Array(float32, 3, 'C'), "
    f"Array(int64, 1, 'C'), {_PLANE}, {_PLANE}, {_PLANE}, int64, int64, int64, int64, float32)",
    parts=(
        *(is_aligned, is_apart, count_before, find_shift, weigh),
        *(summarize, store, measure_block, merge_lane, update_feature),
    ),
    outputs_are_apart=True,
)


def _explain_refusal(rows: Floats, kept: Floats, counts: Counts, scratch: Floats) -> None:
    """Raise the error that says what is wrong with the arguments."""
    arrays: dict[str, npt.NDArray[Any]] = {"rows": rows, "out_kept": kept}
    arrays |= {"out_counts": counts, "out_scratch": scratch}
    for name, array in arrays.items():
        check_is_ndarray(name, array)
        check_dtype(name, array, np.int64 if name == "out_counts" else np.float32)
        check_layout(name, array)
    check_update(rows, kept, counts, scratch)
    for name in ("out_kept", "out_counts", "out_scratch"):
        check_output(name, arrays)
