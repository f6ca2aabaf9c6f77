"""Discounted sums of rewards from an episode's beginning on, of NumPy or CuPy arrays."""

from __future__ import annotations

import numpy as np

from parllel.cuda import AnyArray
from parllel.kernels import running_returns as kernel
from parllel.ops.launching import check_device_layout, check_device_outputs, launch_serial
from parllel.ops.sides import common_side_of


def sum_rewards(
    reward: AnyArray,
    terminated: AnyArray,
    truncated: AnyArray,
    begin: AnyArray,
    *,
    discount: float,
    out_return: AnyArray,
    out_end: AnyArray,
) -> None:
    """Write running returns, as `kernels.running_returns.sum_rewards` defines them.

    Arrays of NumPy hold the results when this returns. For arrays of CuPy it is one launch in the
    caller's current stream, in which one thread walks the steps of one column; nothing waits for
    it, and the arrays must stay as they are until it is done. Nothing is allocated or copied.

    Args:
        reward: float32 [T, B * n], as all others C-contiguous, and all of one library.
        terminated, truncated: bool [T, B].
        begin: float32 [B * n].
        discount: float in [0, 1].
        out_return, out_end: float32 [T, B * n] and [B * n], overwritten; must not overlap another
            array.

    Raises:
        TypeError: an array is none of NumPy or CuPy, they are of both, or the discount is no
            number.
        ValueError: an array has another dtype, shape or layout, or an output overlaps another
            array, or the discount is outside [0, 1]. Nothing was written or launched then.
    """
    inputs, outputs = (reward, terminated, truncated, begin), (out_return, out_end)
    arrays = dict(zip(kernel.NAMES, (*inputs, *outputs), strict=True))
    if common_side_of(arrays) == "host":
        kernel.sum_rewards(*inputs, discount=discount, out_return=out_return, out_end=out_end)
        return
    check_device_layout(arrays)
    kernel.check_sum_rewards(*inputs, discount, *outputs)
    check_device_outputs(arrays, "out_return", "out_end")
    steps, width = reward.shape
    if width:  # of no steps, the end is the beginning
        sizes = np.int64(steps), np.int64(width), np.int64(terminated.shape[1])
        launch_serial("running_returns", width, [*inputs, np.float32(discount), *sizes, *outputs])
