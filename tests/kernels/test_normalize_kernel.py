"""The normalize kernel: its CPU twin against NumPy, its grid, its boundary."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parllel.kernels import normalize as kernel
from parllel.kernels.moment_layout import N_KEPT, OFFSET, SCALE, SHIFT, count_copies
from parllel.kernels.normalize import normalize
from parllel.kernels.targets import Axes, launch_plainly

Floats = npt.NDArray[np.float32]


def some_kept(features: tuple[int, ...], seed: int) -> Floats:
    """Return moments, in all copies; the rows that are not read are NaN."""
    rng = np.random.default_rng(seed)
    copies = count_copies(math.prod(features))
    kept = np.full((N_KEPT, copies, *features), np.nan, np.float32)
    for row in (SHIFT, OFFSET, SCALE):
        kept[row] = rng.standard_normal(features)
    return kept


def some_values(shape: tuple[int, ...], seed: int) -> Floats:
    """Return values, with some that are no numbers."""
    rng = np.random.default_rng(seed)
    odd = rng.choice(np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32), shape)
    is_odd = rng.random(shape) < 0.1
    return np.where(is_odd, odd, 3 * rng.standard_normal(shape, np.float32))


def expect(values: Floats, kept: Floats, low: float, high: float) -> Floats:
    """Return the formula of the docstring, in NumPy's float32."""
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = ((values - kept[SHIFT, 0]) - kept[OFFSET, 0]) * kept[SCALE, 0]
        return np.minimum(np.maximum(scaled, np.float32(low)), np.float32(high))


@given(
    batch_shape=st.sampled_from([(), (1,), (5,), (7, 3), (64, 9), (0, 4)]),
    features=st.sampled_from([(), (1,), (3,), (2, 5), (127,), (128,), (150,), (0,)]),
    bounds=st.sampled_from([(-math.inf, math.inf), (-1, 1), (0.5, 0.5), (-math.inf, 0.1)]),
    seed=st.integers(0, 99),
)
def test_values_are_exactly_those_of_numpy(
    batch_shape: tuple[int, ...],
    features: tuple[int, ...],
    bounds: tuple[float, float],
    seed: int,
) -> None:
    values, kept = some_values((*batch_shape, *features), seed), some_kept(features, seed)
    out = np.empty_like(values)
    low, high = bounds
    normalize(values, kept, low=low, high=high, out_values=out)
    np.testing.assert_array_equal(out, expect(values, kept, low, high))


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 0.25), (-math.inf, 2)])
def test_a_mean_of_0_and_a_scale_of_1_leave_what_is_within_the_bounds(
    low: float, high: float
) -> None:
    values, out = some_values((500,), 1), np.empty(500, np.float32)
    kept = np.zeros((N_KEPT, 128), np.float32)
    kept[SCALE] = 1
    normalize(values, kept, low=low, high=high, out_values=out)
    inside = (values >= low) & (values <= high) | np.isnan(values)
    assert inside.any()
    assert out[inside].tobytes() == values[inside].tobytes()
    assert (out[~inside] == np.where(values[~inside] < low, low, high)).all()


@pytest.mark.parametrize(
    ("grid", "block"),
    [(Axes(1, 1), Axes(1, 1)), (Axes(2, 3), Axes(5, 2)), (Axes(4, 1), Axes(130, 1))],
)
@pytest.mark.parametrize("features", [(), (3,), (140,)])
def test_a_grid_of_any_shape_writes_every_value(
    features: tuple[int, ...], grid: Axes, block: Axes
) -> None:
    values, kept = some_values((7, *features), 0), some_kept(features, 0)
    out = np.full_like(values, 7)
    arguments: list[Any] = [values.reshape(-1), values.size, kept.size // N_KEPT, kept.reshape(-1)]
    arguments += [np.float32(-1), np.float32(1), out.reshape(-1)]
    with np.errstate(invalid="ignore"):
        launch_plainly(kernel.DEVICE, arguments, grid=grid, block=block)
    np.testing.assert_array_equal(out, expect(values, kept, -1, 1))


def zeros(*shape: int) -> Floats:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("name", "wrong", "error", "message"),
    [
        ("values", [1.0], TypeError, "values: list, expected numpy.ndarray"),
        ("values", np.zeros((4, 3)), ValueError, "values: dtype float64, expected float32"),
        ("values", zeros(3, 4).T, ValueError, "values: strides .* C-contiguous"),
        ("values", zeros(3, 4), ValueError, r"out_values: shape \(4, 3\), expected \(3, 4\) = "),
        ("kept", zeros(5, 42, 3), ValueError, r"kept: shape \(5, 42, 3\), expected \(6, copies, "),
        ("kept", zeros(6, 42, 2), ValueError, r"kept: shape \(6, 42, 2\), expected .* \(4, 3\)"),
        ("kept", zeros(6), ValueError, r"kept: shape \(6,\), expected"),
        ("kept", np.zeros((6, 42, 3)), ValueError, "kept: dtype float64"),
        ("out_values", zeros(4, 6)[:, ::2], ValueError, "out_values: strides"),
        ("out_values", zeros(12), ValueError, r"out_values: shape \(12,\)"),
        ("low", 2, ValueError, "bounds: got low 2 and high 1, expected low <= high"),
        ("high", math.nan, ValueError, "bounds: got low -1 and high nan"),
        ("low", None, TypeError, "None"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(
    name: str, wrong: object, error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {
        "values": zeros(4, 3),
        "kept": zeros(6, 42, 3),
        "low": -1,
        "high": 1,
        "out_values": zeros(4, 3),
        name: wrong,
    }
    with pytest.raises(error, match=message):
        normalize(**arguments)


@pytest.mark.parametrize("name", ["values", "kept"])
def test_another_byte_order_is_refused_whatever_came_before(name: str) -> None:
    """Numba keeps types of arrays that are read-only, without their byte order."""
    for dtype in (">f4", np.float32, ">f4", np.float32):
        arrays = {"values": zeros(4, 3), "kept": zeros(6, 42, 3), "out_values": zeros(4, 3)}
        arrays[name] = arrays[name].astype(dtype)
        arrays[name].flags.writeable = False
        if dtype == np.float32:
            normalize(low=-1, high=1, **arrays)
        else:
            with pytest.raises(ValueError, match=f"{name}: dtype >f4, expected float32"):
                normalize(low=-1, high=1, **arrays)


@pytest.mark.parametrize("name", ["values", "kept", "out_values"])
def test_an_array_that_is_not_aligned_is_refused(name: str) -> None:
    arrays = {"values": zeros(4, 3), "kept": zeros(6, 42, 3), "out_values": zeros(4, 3)}
    nbytes, shape = arrays[name].nbytes, arrays[name].shape
    arrays[name] = np.zeros(nbytes + 1, np.uint8)[1:].view(np.float32).reshape(shape)
    with pytest.raises(ValueError, match=f"{name}: strides .* aligned"):
        normalize(low=-1, high=1, **arrays)


def test_an_output_that_is_read_only_or_overlaps_is_refused() -> None:
    values, kept = zeros(4, 3), zeros(6, 42, 3)
    out = zeros(4, 3)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out_values: read-only"):
        normalize(values, kept, low=-1, high=1, out_values=out)
    with pytest.raises(ValueError, match="out_values: overlaps values"):
        normalize(values, kept, low=-1, high=1, out_values=values)
    with pytest.raises(ValueError, match="out_values: overlaps kept"):
        normalize(values, kept, low=-1, high=1, out_values=kept[0, :4])
