"""Numbers made relative to their feature's moments, and clipped, of NumPy or CuPy arrays."""

from __future__ import annotations

import numpy as np

from parllel.cuda import AnyArray
from parllel.kernels import normalize as kernel
from parllel.kernels.moment_layout import N_KEPT
from parllel.ops.launching import check_device_layout, check_device_outputs, launch_lines
from parllel.ops.sides import common_side_of


def normalize(
    values: AnyArray, kept: AnyArray, *, low: float, high: float, out_values: AnyArray
) -> None:
    """Normalize and clip values, as `kernels.normalize.normalize` defines it.

    Arrays of NumPy hold the results when this returns. For arrays of CuPy it is one launch in the
    caller's current stream; nothing waits for it, and the arrays must stay as they are until it is
    done. Nothing is allocated or copied.

    Args:
        values: float32 [..., F...], as all others C-contiguous, and all of one library.
        kept: float32 [N_KEPT, copies, F...], of `update_moments`.
        low, high: bounds, low <= high; infinite for none.
        out_values: float32, shape of the values, overwritten; must not overlap another array.

    Raises:
        TypeError: an array is none of NumPy or CuPy, they are of both, or a bound is no number.
        ValueError: an array has another dtype, shape or layout, or the output overlaps another
            array, or low is not at most high. Nothing was written or launched then.
    """
    arrays = {"values": values, "kept": kept, "out_values": out_values}
    if common_side_of(arrays) == "host":
        kernel.normalize(values, kept, low=low, high=high, out_values=out_values)
        return
    check_device_layout(arrays)
    kernel.check_normalize(values, kept, low, high, out_values)
    check_device_outputs(arrays, "out_values")
    if values.size == 0:
        return
    width = kept.size // N_KEPT
    sizes, bounds = (np.int64(values.size), np.int64(width)), (np.float32(low), np.float32(high))
    n_lines = -(-values.size // width)
    launch_lines("normalize", n_lines, width, [values, *sizes, kept, *bounds, out_values])
