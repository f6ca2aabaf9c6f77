"""Mean and variance of rows, merged with those of earlier rows, of NumPy or CuPy arrays."""

from __future__ import annotations

import numpy as np

from parllel.cuda import AnyArray, DeviceArray
from parllel.kernels import moments as kernel
from parllel.kernels.array_checks import check_dtype
from parllel.kernels.moment_layout import LENGTH, N_PLANES, Weights, check_update, lay_out
from parllel.ops.launching import (
    check_device_layout,
    check_device_outputs,
    launch_lines,
    launch_serial,
)
from parllel.ops.sides import common_side_of


def update_moments(
    rows: AnyArray, *, n_before: int, epsilon: float, out_kept: AnyArray, out_scratch: AnyArray
) -> None:
    """Merge rows into moments, as `kernels.moments.update_moments` defines them.

    Arrays of NumPy hold the results when this returns. For arrays of CuPy it is two launches for
    up to 8,000 rows and three for more, in the caller's current stream; nothing waits for them,
    and the arrays must stay as they are until they are done. Nothing is allocated or copied.

    Args:
        rows: float32 [n_rows, F], as all others C-contiguous, and all of one library; with no row
            or no feature nothing is written.
        n_before: rows merged into `out_kept` before; 0 begins anew.
        epsilon: float of 0 or more, added to the standard deviation for the scale.
        out_kept: float32 [N_KEPT, count_copies(F), F], updated.
        out_scratch: float32 [N_PLANES, lay_out(n_rows, F).n_scratch or more], overwritten.

    Raises:
        TypeError: an array is none of NumPy or CuPy, or they are of both.
        ValueError: an array has another dtype, shape or layout, or an output overlaps another
            array. Nothing was written or launched then.
    """
    arrays = {"rows": rows, "out_kept": out_kept, "out_scratch": out_scratch}
    if common_side_of(arrays) == "host":
        kernel.update_moments(
            rows, n_before=n_before, epsilon=epsilon, out_kept=out_kept, out_scratch=out_scratch
        )
        return
    check_device_layout(arrays)
    for name, array in arrays.items():
        check_dtype(name, array, np.float32)
    if rows.size:
        check_update(rows, out_kept, out_scratch)
        check_device_outputs(arrays, "out_kept", "out_scratch")
        _launch(rows, n_before, epsilon, out_kept, out_scratch)


def _launch(
    rows: DeviceArray,
    n_before: int,
    epsilon: float,
    out_kept: DeviceArray,
    out_scratch: DeviceArray,
) -> None:
    layout = lay_out(*rows.shape)
    size, n_features, width, n_parts, n_groups = map(np.int64, layout)
    shift = out_kept if n_before else rows  # the numbers that deviations are counted from
    parts = [out_scratch[plane] for plane in range(N_PLANES)]
    n_blocks = -(-layout.size // (LENGTH * layout.width))
    launch_lines("moments", n_blocks, layout.width, [rows, size, n_features, width, shift, *parts])
    if n_groups:
        launch_serial("merge_moments", layout.n_groups, [*parts, n_parts, n_groups])
    begin = n_parts if n_groups else np.int64(0)
    launch_serial(
        "update_moments",
        layout.n_features,
        [
            *(*parts, begin, n_parts + n_groups, n_features, width, shift, out_kept),
            *Weights.of(n_before, len(rows), epsilon),
        ],
    )
