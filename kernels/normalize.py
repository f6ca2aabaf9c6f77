"""Numbers made relative to their feature's moments, and clipped: the kernel and its CPU twin."""

import numpy as np
import numpy.typing as npt

from parllel.kernels.array_checks import (
    Shaped,
    are_native,
    check_dtype,
    check_is_ndarray,
    check_layout,
    check_output,
    check_shape,
    is_aligned,
    is_apart,
)
from parllel.kernels.moment_layout import N_KEPT, OFFSET, SCALE, SHIFT
from parllel.kernels.targets import CpuKernel, DeviceEntry, cuda, pointer_to

Floats = npt.NDArray[np.float32]


def normalize(values: Floats, kept: Floats, *, low: float, high: float, out_values: Floats) -> None:
    """Write how many standard deviations values are from the mean, within bounds.

    out_values = clip(((values - SHIFT) - OFFSET) * SCALE, low, high)

    With zeros and a SCALE of 1 the values are clipped alone, exactly. NaN stays NaN. Runs in the
    calling thread, without the GIL, and allocates nothing. All arrays are C-contiguous and in
    host memory.

    Args:
        values: float32 [..., F...].
        kept: float32 [N_KEPT, copies, F...], of `update_moments`.
        low, high: bounds, low <= high; infinite for none.
        out_values: float32, shape of the values, overwritten; must not overlap another array.

    Raises:
        TypeError: an array is no numpy.ndarray, or a bound is no number.
        ValueError: an array has another dtype, shape or layout, is read-only or overlaps where it
            must not. Nothing has been written then.
    """
    mismatch = None
    try:
        is_written = _run(values, kept, low, high, out_values)
    except (TypeError, AttributeError) as error:  # raised before anything is written
        is_written, mismatch = False, error
    if not is_written:
        arrays = {"values": values, "kept": kept, "out_values": out_values}
        for name, array in arrays.items():
            check_is_ndarray(name, array)
            check_layout(name, array)
        check_normalize(values, kept, low, high, out_values)
        check_output("out_values", arrays)
        raise AssertionError("the compiled entry refuses what no check finds wrong") from mismatch


def check_normalize(
    values: Shaped, kept: Shaped, low: float, high: float, out_values: Shaped
) -> None:
    """Raise if arrays of NumPy or CuPy do not go together, or the bounds are none.

    Raises:
        TypeError: a bound is no number.
        ValueError: a dtype, a shape or the bounds are wrong.
    """
    for name, array in (("values", values), ("kept", kept), ("out_values", out_values)):
        check_dtype(name, array, np.float32)
    check_shape("out_values", out_values, values.shape, "the shape of the values")
    if not is_kept_for(values, kept):
        raise ValueError(
            f"kept: shape {kept.shape}, expected ({N_KEPT}, copies, F...) with the last axes of"
            f" the values, whose shape is {values.shape}"
        )
    if not low <= high:
        raise ValueError(f"bounds: got low {low} and high {high}, expected low <= high")


def is_kept_for(values: Shaped, kept: Shaped) -> bool:
    """Return whether moments have the features of the values."""
    features = kept.shape[2:]
    has_features: bool = values.shape[values.ndim - len(features) :] == features
    return kept.ndim >= 2 and kept.shape[0] == N_KEPT and kept.shape[1] > 0 and has_features


def normalize_number(
    value: np.float32, place: int, width: int, kept: Floats, low: np.float32, high: np.float32
) -> np.float32:
    """Return a number of the feature whose moments lie at a place of each of their rows."""
    deviation = (value - kept[SHIFT * width + place]) - kept[OFFSET * width + place]
    scaled = deviation * kept[SCALE * width + place]
    raised = low if scaled < low else scaled  # NaN is neither below nor above
    return high if raised > high else raised


def normalize_on_grid(
    values: Floats,
    size: int,
    width: int,
    kept: Floats,
    low: np.float32,
    high: np.float32,
    out_values: Floats,
) -> None:
    """Write all values. Grid (lines of `width` values, lanes), block (lanes, lines)."""
    line = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    while line * width < size:
        lane = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        while lane < min(width, size - line * width):
            at = line * width + lane
            out_values[at] = normalize_number(values[at], lane, width, kept, low, high)
            lane += cuda.gridDim.y * cuda.blockDim.x
        line += cuda.gridDim.x * cuda.blockDim.y


DEVICE = DeviceEntry(
    "normalize",
    normalize_on_grid,
    "void(CPointer(float32), int64, int64, CPointer(float32), float32, float32, CPointer(float32))",
    (normalize_number,),
)


def normalize_checked(
    values: Floats, kept: Floats, low: float, high: float, out_values: Floats
) -> bool:
    """Check what is left, then write; return whether the checks passed."""
    if not (low <= high and is_apart(out_values, values) and is_apart(out_values, kept)):
        return False
    if not (is_aligned(values) and is_aligned(kept) and is_aligned(out_values)):
        return False
    width = kept.size // N_KEPT
    read, written, kept_at = pointer_to(values), pointer_to(out_values), pointer_to(kept)
    low_32, high_32 = np.float32(low), np.float32(high)
    for line in range(0, values.size, max(1, width)):
        for lane in range(min(width, values.size - line)):
            value = normalize_number(read[line + lane], lane, width, kept_at, low_32, high_32)
            written[line + lane] = value
    return True


_READ = "Array(float32, 1, 'C', readonly=True)"
_ON_CPU = CpuKernel(
    normalize_checked,
    f"boolean({_READ}, {_READ}, float64, float64, Array(float32, 1, 'C'))",
    parts=(is_aligned, is_apart, normalize_number),
    outputs_are_apart=True,
)


def _run(values: Floats, kept: Floats, low: float, high: float, out_values: Floats) -> bool:
    """Return whether the arguments passed all checks; the values are written then."""
    arrays = (values, kept, out_values)
    if not (are_native(*arrays) and all(array.flags.c_contiguous for array in arrays)):
        return False
    if values.shape != out_values.shape or not is_kept_for(values, kept):
        return False
    flat = [array.reshape(-1) for array in arrays]
    return _ON_CPU.compiled(flat[0], flat[1], low, high, flat[2])
