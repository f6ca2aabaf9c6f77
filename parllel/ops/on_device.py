"""The transforms' kernels launched on CuPy arrays: in the caller's current stream, without a wait.

Every function here has a twin in `parllel.kernels` that does the same to NumPy arrays. It checks
types and shapes, launches, and returns; the arrays must stay as they are until the work is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from parllel import cuda
from parllel.kernels.advantage import Batch, expected_arrays
from parllel.kernels.array_checks import check_dtype, check_fraction, check_shape
from parllel.kernels.moment_layout import (
    LENGTH,
    N_KEPT,
    N_PLANES,
    Weights,
    check_update,
    lay_out,
)
from parllel.kernels.normalize import check_normalize

DeviceArray: TypeAlias = Any  # cupy.ndarray, which ships no types

# Allowed on every GPU, not tuned on one yet.
_WARP = 32
_THREADS = 256  # of a block
_SERIAL_THREADS = _WARP  # where each has long work: small blocks spread few threads far
_MOST_BLOCKS = 65_535  # on an axis; the kernels go on where the grid ends


def estimate_advantage_on_device(
    reward: DeviceArray,
    value: DeviceArray,
    terminated: DeviceArray,
    truncated: DeviceArray,
    final_value: DeviceArray,
    *,
    discount: float,
    gae_lambda: float,
    out_advantage: DeviceArray,
    out_return: DeviceArray,
) -> None:
    """Write advantages and returns in one launch; formula and error bound: `estimate_advantage`.

    One thread walks the steps of one environment. Nothing is allocated or copied.

    Args:
        reward: float32 [T, B], as all others C-contiguous and in device or managed memory.
        value: float32 [T + 1, B].
        terminated, truncated: bool [T, B].
        final_value: float32 [T, B].
        discount, gae_lambda: float in [0, 1].
        out_advantage, out_return: float32 [T, B], overwritten; must not overlap another array.

    Raises:
        TypeError: an array is none of CuPy's, or a factor is no number.
        ValueError: an array has another dtype, shape or layout, or an output overlaps another
            array, or a factor is outside [0, 1]. Nothing was launched then.
    """
    given = (reward, value, terminated, truncated, final_value, out_advantage, out_return)
    arrays = dict(zip(Batch._fields, given, strict=True))
    _check_layout(arrays)
    if reward.ndim != 2:
        raise ValueError(f"reward: shape {reward.shape}, expected two axes, (T, B)")
    steps, width = reward.shape
    for name, (dtype, shape, meaning) in expected_arrays(steps, width).items():
        check_dtype(name, arrays[name], dtype)
        check_shape(name, arrays[name], shape, meaning)
    check_fraction("discount", discount)
    check_fraction("gae_lambda", gae_lambda)
    _check_apart(arrays, "out_advantage", "out_return")
    factors = np.float32(discount), np.float32(discount * gae_lambda)
    sizes = np.int64(steps), np.int64(width)
    if reward.size:
        _launch_serial("advantage", width, [*given[:5], *factors, *sizes, *given[5:]])


def update_moments_on_device(
    rows: DeviceArray,
    *,
    n_before: int,
    epsilon: float,
    out_kept: DeviceArray,
    out_scratch: DeviceArray,
) -> None:
    """Merge rows into moments in two launches, or in three; formula and error: `update_moments`.

    Two are enough for up to 8,000 rows, three for any number. Nothing is allocated or copied.

    Args:
        rows: float32 [n_rows, F], as all others C-contiguous and in device or managed memory;
            with no row or no feature nothing is launched.
        n_before: rows merged into `out_kept` before; 0 begins anew.
        epsilon: float of 0 or more, added to the standard deviation for the scale.
        out_kept: float32 [N_KEPT, count_copies(F), F], updated.
        out_scratch: float32 [N_PLANES, lay_out(n_rows, F).n_scratch or more], overwritten.

    Raises:
        TypeError: an array is none of CuPy's.
        ValueError: an array has another dtype, shape or layout, or an output overlaps another
            array. Nothing was launched then.
    """
    arrays = {"rows": rows, "out_kept": out_kept, "out_scratch": out_scratch}
    _check_layout(arrays)
    for name, array in arrays.items():
        check_dtype(name, array, np.float32)
    if rows.size == 0:
        return
    check_update(rows, out_kept, out_scratch)
    _check_apart(arrays, "out_kept", "out_scratch")
    layout = lay_out(*rows.shape)
    size, n_features, width, n_parts, n_groups = map(np.int64, layout)
    shift = out_kept if n_before else rows  # the numbers that deviations are counted from
    parts = [out_scratch[plane] for plane in range(N_PLANES)]
    n_blocks = -(-layout.size // (LENGTH * layout.width))
    _launch_lines("moments", n_blocks, layout.width, [rows, size, n_features, width, shift, *parts])
    if n_groups:
        _launch_serial("merge_moments", layout.n_groups, [*parts, n_parts, n_groups])
    begin = n_parts if n_groups else np.int64(0)
    _launch_serial(
        "update_moments",
        layout.n_features,
        [
            *(*parts, begin, n_parts + n_groups, n_features, width, shift, out_kept),
            *Weights.of(n_before, len(rows), epsilon),
        ],
    )


def normalize_on_device(
    values: DeviceArray,
    kept: DeviceArray,
    *,
    low: float,
    high: float,
    out_values: DeviceArray,
) -> None:
    """Normalize and clip values in one launch; formula: `kernels.normalize.normalize`.

    Nothing is allocated or copied.

    Args:
        values: float32 [..., F...], as all others C-contiguous and in device or managed memory.
        kept: float32 [N_KEPT, copies, F...], of `update_moments_on_device`.
        low, high: bounds, low <= high; infinite for none.
        out_values: float32, shape of the values, overwritten; must not overlap another array.

    Raises:
        TypeError: an array is none of CuPy's, or a bound is no number.
        ValueError: an array has another dtype, shape or layout, or the output overlaps another
            array, or the bounds are none. Nothing was launched then.
    """
    arrays = {"values": values, "kept": kept, "out_values": out_values}
    _check_layout(arrays)
    check_normalize(values, kept, low, high, out_values)
    _check_apart(arrays, "out_values")
    if values.size == 0:
        return
    width = kept.size // N_KEPT
    sizes, bounds = (np.int64(values.size), np.int64(width)), (np.float32(low), np.float32(high))
    n_lines = -(-values.size // width)
    _launch_lines("normalize", n_lines, width, [values, *sizes, kept, *bounds, out_values])


def _launch_serial(name: str, n_threads: int, arguments: list[Any]) -> None:
    """Launch a kernel with one axis, whose threads each have long work."""
    n_blocks = min(-(-n_threads // _SERIAL_THREADS), _MOST_BLOCKS)
    cuda.launch(name, (n_blocks,), (_SERIAL_THREADS,), arguments)


def _launch_lines(name: str, n_lines: int, n_lanes: int, arguments: list[Any]) -> None:
    """Launch a kernel whose grid is (lines, lanes) and whose block is (lanes, lines)."""
    lanes = min(-(-n_lanes // _WARP) * _WARP, _THREADS)
    lines = _THREADS // lanes
    grid = min(-(-n_lines // lines), _MOST_BLOCKS), min(-(-n_lanes // lanes), _MOST_BLOCKS)
    cuda.launch(name, grid, (lanes, lines), arguments)


def _check_layout(arrays: Mapping[str, DeviceArray]) -> None:
    for name, array in arrays.items():
        if not hasattr(getattr(array, "data", None), "ptr"):
            raise TypeError(
                f"{name}: {type(array).__name__}, expected cupy.ndarray; an Array gives one with"
                " to_cupy()"
            )
        if not array.flags.c_contiguous:
            raise ValueError(
                f"{name}: strides {array.strides}, expected C-contiguous; copy an input with"
                " .copy(), allocate an output with cupy.empty"
            )


def _check_apart(arrays: Mapping[str, DeviceArray], *outputs: str) -> None:
    extents = {name: (array.data.ptr, array.nbytes) for name, array in arrays.items()}
    for output in outputs:
        begin, nbytes = extents[output]
        for name, (other, other_nbytes) in extents.items():
            if name != output and begin < other + other_nbytes and other < begin + nbytes:
                raise ValueError(
                    f"{output}: overlaps {name}, expected memory of its own; allocate it with"
                    " cupy.empty"
                )
