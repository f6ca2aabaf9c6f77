"""Generalized advantage estimation of batches of NumPy or CuPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from parllel.cuda import AnyArray, DeviceArray
from parllel.kernels import advantage as kernel
from parllel.kernels.array_checks import check_dtype, check_fraction, check_shape
from parllel.ops import launching
from parllel.ops.launching import check_device_layout, check_device_outputs, launch_serial
from parllel.ops.sides import common_side_of


def estimate_advantage(
    reward: AnyArray,
    value: AnyArray,
    terminated: AnyArray,
    truncated: AnyArray,
    final_value: AnyArray,
    *,
    discount: float,
    gae_lambda: float,
    out_advantage: AnyArray,
    out_return: AnyArray,
) -> None:
    """Write advantages and returns, as `kernels.advantage.estimate_advantage` defines them.

    Arrays of NumPy hold the results when this returns. For arrays of CuPy it is one launch in the
    caller's current stream, in which one thread walks the steps of one environment. Of 256 steps
    or more, in few environments, it is three, which walk parts of time at once and join them: the
    results are then rounded otherwise, within the same bound. Nothing waits for the launches, and
    the arrays must stay as they are until they are done. Nothing is allocated or copied.

    Args:
        reward: float32 [T, B], as all others C-contiguous, and all of one library.
        value: float32 [T + 1, B].
        terminated, truncated: bool [T, B].
        final_value: float32 [T, B].
        discount, gae_lambda: float in [0, 1].
        out_advantage, out_return: float32 [T, B], overwritten; must not overlap another array.

    Raises:
        TypeError: an array is none of NumPy or CuPy, they are of both, or a factor is no number.
        ValueError: an array has another dtype, shape or layout, or an output overlaps another
            array, or a factor is outside [0, 1]. Nothing was written or launched then.
    """
    prepare_advantage(
        reward,
        value,
        terminated,
        truncated,
        final_value,
        discount=discount,
        gae_lambda=gae_lambda,
        out_advantage=out_advantage,
        out_return=out_return,
    )()


def prepare_advantage(
    reward: AnyArray,
    value: AnyArray,
    terminated: AnyArray,
    truncated: AnyArray,
    final_value: AnyArray,
    *,
    discount: float,
    gae_lambda: float,
    out_advantage: AnyArray,
    out_return: AnyArray,
) -> Callable[[], None]:
    """Return a function that estimates advantages of what these arrays hold when it is called.

    It may be called again and again, as long as the memory of the arrays is there. Arrays of CuPy
    are checked here, once; those of NumPy by their kernel, with each call.

    Args:
        reward, value, terminated, truncated, final_value: as for `estimate_advantage`.
        discount, gae_lambda, out_advantage, out_return: as there.

    Raises:
        TypeError, ValueError: as for `estimate_advantage`; for arrays of NumPy, the call raises.
    """
    inputs = (reward, value, terminated, truncated, final_value)
    outputs = (out_advantage, out_return)
    arrays = dict(zip(kernel.GaePointers._fields, (*inputs, *outputs), strict=True))
    if common_side_of(arrays) == "host":
        return kernel.prepare_estimate(inputs, outputs, discount=discount, gae_lambda=gae_lambda)
    check_device_layout(arrays)
    if reward.ndim != 2:
        raise ValueError(f"reward: shape {reward.shape}, expected two axes, (T, B)")
    steps, width = reward.shape
    for name, (dtype, shape, meaning) in kernel.expected_arrays(steps, width).items():
        check_dtype(name, arrays[name], dtype)
        check_shape(name, arrays[name], shape, meaning)
    check_fraction("discount", discount)
    check_fraction("gae_lambda", gae_lambda)
    check_device_outputs(arrays, "out_advantage", "out_return")
    factors = np.float32(discount), np.float32(discount * gae_lambda)
    if not reward.size:
        return _do_nothing
    return partial(_launch, [*inputs, *factors], steps, width, outputs)


def _do_nothing() -> None:
    """Estimate no advantage."""


def _launch(
    arguments: Sequence[np.generic | DeviceArray],
    steps: int,
    width: int,
    outputs: Sequence[DeviceArray],
) -> None:
    span = launching.find_span(steps, width)
    n_spans = -(-steps // span)
    sizes = np.int64(steps), np.int64(width), np.int64(span)
    arguments = [*arguments, *sizes, *outputs]
    if n_spans > 1:
        launch_serial("advantage_spans", (n_spans - 1) * width, arguments)
        launch_serial("advantage_carries", width, [*sizes, *outputs])
    launch_serial("advantage", n_spans * width, arguments)
