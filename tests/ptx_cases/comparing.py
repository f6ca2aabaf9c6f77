"""Comparisons of what a launch wrote with what a reference says."""

from typing import Any

import numpy as np
import numpy.typing as npt

from parllel import cuda
from parllel.cuda import DeviceArray


def assert_bits(name: str, got: DeviceArray, expected: npt.NDArray[Any]) -> None:
    """Compare byte for byte."""
    found = cuda.to_host(got)
    assert found.dtype == expected.dtype, name
    assert found.shape == expected.shape, name
    if found.tobytes() != expected.tobytes():
        n = np.count_nonzero(found != expected)
        raise AssertionError(f"{name}: {n} of {found.size} differ from the reference")


def assert_floats(name: str, got: DeviceArray, expected: npt.NDArray[Any]) -> None:
    """Compare float32 bit for bit, but for the bits of NaN."""
    found = cuda.to_host(got)
    both = [np.where(np.isnan(each), np.float32(np.nan), each) for each in (found, expected)]
    assert expected.dtype == np.float32, name
    wrong = both[0].view(np.int32) != both[1].view(np.int32)
    if wrong.any():
        n, at = np.count_nonzero(wrong), np.argwhere(wrong)[0].tolist()
        raise AssertionError(f"{name}: {n} of {found.size} differ from the reference, as at {at}")


def assert_near(
    name: str, got: DeviceArray, expected: npt.NDArray[Any], bound: npt.NDArray[Any] | float
) -> None:
    """Compare with double precision."""
    error = np.abs(cuda.to_host(got).astype(np.float64) - expected)
    if not (error <= bound).all():
        raise AssertionError(f"{name}: off by {np.nanmax(error)} from the reference")
