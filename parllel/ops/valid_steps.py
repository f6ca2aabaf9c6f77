"""Steps of a batch that are no transitions, of NumPy or CuPy arrays: cut off, and cleared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parllel.cuda import AnyArray
from parllel.kernels import valid_steps as kernel
from parllel.kernels.array_checks import check_dtype, check_layout, check_output, check_shape
from parllel.ops.launching import check_device_layout, check_device_outputs, launch_items
from parllel.ops.sides import address_of, common_side_of

_FLAGS = ("valid", "terminated", "truncated", "out_truncated")
_OUTPUTS = ("out_truncated", "out_final_value", "out_advantage", "out_return")


def cut_episodes(
    valid: AnyArray,
    terminated: AnyArray,
    truncated: AnyArray,
    value: AnyArray,
    final_value: AnyArray,
    *,
    out_truncated: AnyArray,
    out_final_value: AnyArray,
) -> None:
    """Write flags and values that end each episode before a step that is not valid.

    Such an episode is truncated, and bootstrapped with the value of the step that is not valid. An
    episode that has ended before it stays as it is.

    Arrays of NumPy hold the results when this returns. For arrays of CuPy it is one launch in the
    caller's current stream; nothing waits for it. Nothing is allocated or copied.

    Args:
        valid, terminated, truncated: bool [T, B], as all others C-contiguous, and all of one
            library.
        value: float32 [T + 1, B].
        final_value: float32 [T, B].
        out_truncated, out_final_value: bool and float32 [T, B], overwritten; must not overlap
            another array.

    Raises:
        TypeError: an array is none of NumPy or CuPy, or they are of both.
        ValueError: an array has another dtype, shape or layout, or an output overlaps another
            array. Nothing was written or launched then.
    """
    arrays = {
        "valid": valid,
        "terminated": terminated,
        "truncated": truncated,
        "value": value,
        "final_value": final_value,
        "out_truncated": out_truncated,
        "out_final_value": out_final_value,
    }
    is_on_host = _check(arrays)
    *read, flags, values = arrays.values()
    n, width = valid.size, valid.shape[1]
    if n == 0:
        return
    if is_on_host:
        places = [address_of(array) for array in (*read, flags, values)]
        kernel.CUT_ON_CPU.compiled(*places[:-2], width, n, *places[-2:])
    else:
        launch_items(kernel.CUT.name, n, [*read, width, n, flags, values])


def clear_steps(valid: AnyArray, *, out_advantage: AnyArray, out_return: AnyArray) -> None:
    """Write 0 to two results at the steps that are not valid, as `cut_episodes` works.

    Args:
        valid: bool [T, B], C-contiguous.
        out_advantage, out_return: float32 [T, B], C-contiguous and of the same library; other steps
            stay as they are. They must not overlap another array.

    Raises:
        TypeError, ValueError: as `cut_episodes`.
    """
    arrays = {"valid": valid, "out_advantage": out_advantage, "out_return": out_return}
    is_on_host = _check(arrays)
    n = valid.size
    if n == 0:
        return
    if is_on_host:
        outputs = address_of(out_advantage), address_of(out_return)
        kernel.CLEAR_ON_CPU.compiled(address_of(valid), n, *outputs)
    else:
        launch_items(kernel.CLEAR.name, n, [valid, n, out_advantage, out_return])


def _check(arrays: Mapping[str, AnyArray]) -> bool:
    """Raise unless arrays are what the kernels take; return whether the host works on them."""
    is_on_host = common_side_of(arrays) == "host"
    steps, *width = arrays["valid"].shape
    outputs = [name for name in arrays if name in _OUTPUTS]
    for name, array in arrays.items():
        check_dtype(name, array, np.bool_ if name in _FLAGS else np.float32)
        n_rows = steps + (name == "value")
        check_shape(name, array, (n_rows, *width), "(T, B) as valid has; value has one row more")
        if is_on_host:
            check_layout(name, array)
    if is_on_host:
        for name in outputs:
            check_output(name, arrays)
    else:
        check_device_layout(arrays)
        check_device_outputs(arrays, *outputs)
    return is_on_host
