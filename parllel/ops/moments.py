"""Mean and variance of rows, merged with those of earlier rows, of NumPy or CuPy arrays."""

from __future__ import annotations

import numpy as np

from parllel.cuda import AnyArray, DeviceArray
from parllel.kernels import moments as kernel
from parllel.kernels.array_checks import check_dtype
from parllel.kernels.moment_layout import LENGTH, N_PLANES, check_update, lay_out
from parllel.ops.launching import (
    check_device_layout,
    check_device_outputs,
    launch_lines,
    launch_serial,
)
from parllel.ops.sides import common_side_of


def update_moments(
    rows: AnyArray,
    *,
    begins_anew: bool,
    epsilon: float,
    out_kept: AnyArray,
    out_counts: AnyArray,
    out_scratch: AnyArray,
) -> None:
    """Merge rows into moments, as `kernels.moments.update_moments` defines them.

    Arrays of NumPy hold the results when this returns. For arrays of CuPy it is two launches for
    up to 8,000 rows and three for more, in the caller's current stream; nothing waits for them,
    and the arrays must stay as they are until they are done. Nothing is allocated or copied. The
    rows seen before are counted on the device: a captured call merges its rows at each replay.

    Args:
        rows: float32 [n_rows, F], as all others C-contiguous, and all of one library; with no row
            or no feature nothing is written.
        begins_anew: whether these rows are the first ones, whatever `out_kept` holds.
        epsilon: float of 0 or more, added to the standard deviation for the scale.
        out_kept: float32 [N_KEPT, count_copies(F), F], updated.
        out_counts: int64 [F], the rows merged into `out_kept` before, updated; all alike.
        out_scratch: float32 [N_PLANES, lay_out(n_rows, F).n_scratch or more], overwritten.

    Raises:
        TypeError: an array is none of NumPy or CuPy, or they are of both.
        ValueError: an array has another dtype, shape or layout, or an output overlaps another
            array. Nothing was written or launched then.
    """
    outputs = {"out_kept": out_kept, "out_counts": out_counts, "out_scratch": out_scratch}
    arrays = {"rows": rows, **outputs}
    if common_side_of(arrays) == "host":
        kernel.update_moments(rows, begins_anew=begins_anew, epsilon=epsilon, **outputs)
        return
    check_device_layout(arrays)
    for name, array in arrays.items():
        check_dtype(name, array, np.int64 if name == "out_counts" else np.float32)
    if rows.size:
        check_update(rows, *outputs.values())
        check_device_outputs(arrays, *outputs)
        _launch(rows, begins_anew, epsilon, *outputs.values())


def _launch(
    rows: DeviceArray,
    begins_anew: bool,
    epsilon: float,
    out_kept: DeviceArray,
    out_counts: DeviceArray,
    out_scratch: DeviceArray,
) -> None:
    layout = lay_out(*rows.shape)
    size, n_features, width, n_parts, n_groups = map(np.int64, layout)
    begins = np.int64(begins_anew)
    parts = [out_scratch[plane] for plane in range(N_PLANES)]
    n_blocks = -(-layout.size // (LENGTH * layout.width))
    measured = [rows, size, n_features, width, out_kept, out_counts, begins, *parts]
    launch_lines("moments", n_blocks, layout.width, measured)
    if n_groups:
        launch_serial("merge_moments", layout.n_groups, [*parts, n_parts, n_groups])
    begin = n_parts if n_groups else np.int64(0)
    launch_serial(
        "update_moments",
        layout.n_features,
        [
            *(*parts, begin, n_parts + n_groups, n_features, width, rows, out_kept, out_counts),
            *(np.int64(len(rows)), begins, np.float32(epsilon)),
        ],
    )
