"""The moments kernels: the CPU twin against double precision, the grids, the boundary."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parllel.kernels import moments as kernel
from parllel.kernels.moment_layout import (
    FEWEST_TO_GROUP,
    LENGTH,
    M2,
    MEAN,
    N_KEPT,
    N_PLANES,
    OFFSET,
    SCALE,
    SHIFT,
    VARIANCE,
    count_copies,
    lay_out,
)
from parllel.kernels.moments import update_moments
from parllel.kernels.targets import Axes, launch_plainly

Floats = npt.NDArray[np.float32]

U = 2.0**-24  # of float32
EPSILON = 1e-8

# Rows of less than a warp, of a line and more, and those that fill no line evenly.
N_FEATURES = (1, 2, 3, 7, 64, 65, 127, 128, 129, 200)


def arrays_for(rows: Floats) -> dict[str, Any]:
    """Return what an update of these rows writes, full of garbage."""
    n_features = rows.shape[1]
    n_scratch = lay_out(*rows.shape).n_scratch if rows.size else 0
    kept = np.full((N_KEPT, count_copies(n_features), n_features), np.nan, np.float32)
    return {
        "out_kept": kept,
        "out_counts": np.zeros(n_features, np.int64),
        "out_scratch": np.full((N_PLANES, n_scratch), np.nan, np.float32),
    }


def moments_of(*batches: Floats, epsilon: float = EPSILON) -> Floats:
    """Return what is kept of each feature after updates with some batches: float32 [N_KEPT, F]."""
    first = arrays_for(batches[0])
    kept, counts = first["out_kept"], first["out_counts"]
    for rows in batches:
        arrays = {**arrays_for(rows), "out_kept": kept, "out_counts": counts}
        update_moments(rows, begins_anew=False, epsilon=epsilon, **arrays)
    assert (counts == sum(map(len, batches))).all()
    for copy in range(kept.shape[1]):
        assert kept[:, copy].tobytes() == kept[:, 0].tobytes()
    result: Floats = kept[:, 0].copy()
    return result


def bound(rows: Floats) -> npt.NDArray[np.float64]:
    """Return the c of the docstring for each feature; 0 where all rows are the same.

    Derivation, with u = 2**-24, the deviations counted from row 0, s the deviation of all N rows,
    and z * s the mean's distance from row 0. Higham's lemma 3.1 gives (k + 3) u for a sum of k
    rounded squares.

    - A lane of L <= 32 numbers: its pivot p is a float32 next to its mean, or as near as
      (L + 3) (sqrt(L) + 1) u deviations of the lane. No number of the lane lies between p and the
      mean, if p is not further away than that, so n (p - mean)**2 <= M2, and the sum of squares
      is at most 2 M2: off by 2 (L + 3) u M2. The sum of deviations that is squared and taken away
      again is off by (L + 1) u sqrt(2 n M2), which makes less than 3 (L + 1) u M2.
    - A merge of G parts: the pivot is near the mean, so squares and sum are those of the
      deviations themselves: less than 1.1 (G + 4) u M2.
    - A lane's mean is off by 2 u of its distance from row 0, and by 1.5 (L + 3) u deviations.
      For the M2 of all this makes less than 4 sqrt(2 (z**2 + 1)) u M2.

    With L = 32 the lanes make 5 * 34 u. One merge has at most 256 parts, 1.1 * 260 u; two have
    the square root of N / 32 each, 2.2 * (sqrt(N / 32) + 5) u: all in all less than
    (512 + sqrt(N) / 2 + 8 z) u. The means are off by half of that in the same way, and once more
    by u |mean| when SHIFT and OFFSET are added.
    """
    exact = rows.astype(np.float64)
    deviation = exact.std(axis=0)
    distance = abs(exact.mean(axis=0) - exact[0])
    z = np.divide(distance, deviation, out=np.zeros_like(distance), where=deviation > 0)
    return (512 + math.sqrt(len(rows)) / 2 + 8 * z) * U


def assert_right(kept: Floats, rows: Floats, *, n_updates: int = 1) -> None:
    """Compare with double precision, and the kept rows with each other."""
    exact = rows.astype(np.float64)
    mean, variance = exact.mean(axis=0), exact.var(axis=0)
    c = bound(rows) * (1 if n_updates == 1 else 4 * n_updates**1.5)
    assert (abs(kept[VARIANCE] - variance) <= c * variance).all()
    assert (abs(kept[MEAN] - mean) <= c * np.sqrt(variance) + U * abs(mean)).all()
    assert (kept[SHIFT] == rows[0]).all()
    assert (kept[MEAN] == kept[SHIFT] + kept[OFFSET]).all()
    assert (kept[VARIANCE] == kept[M2] * np.float32(1 / len(rows))).all()
    assert (kept[SCALE] == 1 / (np.sqrt(kept[VARIANCE]) + np.float32(EPSILON))).all()


@st.composite
def some_rows(draw: st.DrawFn, max_rows: int = 400) -> Floats:
    """Draw rows of every kind of difficulty, one for each feature."""
    n_rows, n_features = draw(st.integers(1, max_rows)), draw(st.sampled_from(N_FEATURES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mean = 10.0 ** rng.integers(-3, 8, n_features) * rng.integers(-1, 2, n_features)
    deviation = 10.0 ** rng.integers(-3, 3, n_features)
    rows = mean + deviation * rng.standard_normal((n_rows, n_features))
    rows[0] += deviation * rng.choice([0, 0, 1e2, 1e4], n_features)  # what deviations begin from
    return rows.astype(np.float32)


@given(rows=some_rows())
def test_moments_are_those_of_double_precision(rows: Floats) -> None:
    assert_right(moments_of(rows), rows)


@pytest.mark.parametrize(
    "shape", [(8192, 1), (8193, 1), (200_000, 1), (9000, 3), (3000, 40), (8300, 130), (2, 5000)]
)
def test_moments_of_many_rows_are_those_of_double_precision(shape: tuple[int, int]) -> None:
    rows = 50 + np.random.default_rng(shape).standard_normal(shape, np.float32)
    is_grouped = lay_out(*shape).n_groups > 0
    assert is_grouped == (lay_out(*shape).n_parts // shape[1] >= FEWEST_TO_GROUP)
    assert_right(moments_of(rows), rows)


@given(rows=some_rows(), cuts=st.lists(st.integers(1, 399), max_size=6, unique=True))
def test_updates_merge_to_the_moments_of_all_rows(rows: Floats, cuts: list[int]) -> None:
    batches = np.split(rows, sorted(cut for cut in cuts if cut < len(rows)))
    assert_right(moments_of(*batches), rows, n_updates=len(batches))


@pytest.mark.parametrize("n_rows", [2, 31, 500, 20_000])
@pytest.mark.parametrize("share", [0.5, 0.03])
def test_neighbouring_floats_have_a_variance(n_rows: int, share: float) -> None:
    """Mean 2**24, where a float32 and the next one differ by 2: no digit is left for a mean."""
    rng = np.random.default_rng(n_rows)
    rows = np.where(rng.random((n_rows, 3)) < share, 2**24 + 2, 2**24).astype(np.float32)
    rows[:2] = [[2**24], [2**24 + 2]]
    kept = moments_of(rows)
    assert_right(kept, rows)
    assert (abs(kept[VARIANCE] / rows.var(axis=0, dtype=np.float64) - 1) < 1e-4).all()


def test_one_row_has_itself_as_mean_and_no_variance() -> None:
    rows = np.array([[3e7, -1e-3, 0]], np.float32)
    kept = moments_of(rows)
    assert (kept[MEAN] == rows[0]).all()
    assert (kept[[OFFSET, M2, VARIANCE]] == 0).all()


@pytest.mark.parametrize(("n_rows", "n_features"), [(5, 1), (700, 3), (9000, 1), (300, 200)])
def test_equal_rows_have_no_variance(n_rows: int, n_features: int) -> None:
    rows = np.full((n_rows, n_features), 0.3, np.float32)
    kept = moments_of(rows)
    assert (kept[MEAN] == rows[0]).all()
    assert (kept[VARIANCE] == 0).all()
    assert (kept[SCALE] == 1 / np.float32(EPSILON)).all()
    assert (moments_of(rows, epsilon=0)[SCALE] == 0).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_nothing_comes_of_no_numbers(shape: tuple[int, int]) -> None:
    rows = np.zeros(shape, np.float32)
    arrays = arrays_for(rows)
    update_moments(rows, begins_anew=False, epsilon=EPSILON, **arrays)
    assert np.isnan(arrays["out_kept"]).all()
    assert (arrays["out_counts"] == 0).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 300, 8999])
def test_a_number_that_is_none_spoils_its_own_feature_alone(wrong: float, place: int) -> None:
    rows = np.random.default_rng(place).standard_normal((9000, 3), np.float32)
    finite = rows[5:9].copy()
    expected = moments_of(rows, finite)
    rows[place, 1] = wrong
    kept = moments_of(rows, finite)  # which does not mend it
    assert np.isnan(kept[[OFFSET, M2, SCALE, MEAN, VARIANCE], 1]).all()
    assert (kept[:, [0, 2]] == expected[:, [0, 2]]).all()


def test_an_update_that_begins_anew_forgets_what_was_kept() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 2), np.float32)
    arrays = arrays_for(rows)
    update_moments(np.full_like(rows, np.nan), begins_anew=True, epsilon=EPSILON, **arrays)
    assert np.isnan(arrays["out_kept"]).all()
    update_moments(rows, begins_anew=True, epsilon=EPSILON, **arrays)
    assert (arrays["out_kept"][:, 0] == moments_of(rows)).all()
    assert (arrays["out_counts"] == len(rows)).all()


def test_many_small_updates_do_not_lose_the_mean() -> None:
    rows = 5 + np.random.default_rng(1).standard_normal((40_000, 1), np.float32)
    n_updates = 10_000
    kept = moments_of(*np.split(rows, n_updates))
    exact = rows.astype(np.float64)
    # Each rounds OFFSET and M2 three times, by U of numbers around 1; as much again comes from
    # the new rows' own moments.
    assert abs(kept[MEAN] - exact.mean()).item() < 6 * U * n_updates
    assert abs(kept[VARIANCE] - exact.var()).item() < 6 * U * n_updates


# The layout and the grids


@given(n_rows=st.integers(1, 9000), n_features=st.sampled_from(N_FEATURES))
def test_every_number_is_in_one_part_of_its_feature(n_rows: int, n_features: int) -> None:
    layout = lay_out(n_rows, n_features)
    assert layout.size == n_rows * n_features
    assert layout.width % n_features == layout.n_parts % n_features == 0
    assert layout.n_groups % n_features == 0
    assert layout.width == count_copies(n_features) * n_features
    numbers = np.arange(layout.size)
    part = numbers // (LENGTH * layout.width) * layout.width + numbers % layout.width
    assert (part % n_features == numbers % n_features).all()
    sizes = np.bincount(part)
    assert len(sizes) == layout.n_parts
    assert 1 <= sizes.min() <= sizes.max() <= LENGTH


def launch_all(rows: Floats, batches: int, grid: Axes, block: Axes) -> tuple[Floats, Floats]:
    """Run all three kernels as plain Python; return what is kept, and the parts."""
    arrays = arrays_for(rows)
    flat = {"grid": Axes(grid.x, 1), "block": Axes(block.x, 1)}  # two of them have one axis
    kept, counts = arrays["out_kept"].reshape(-1), arrays["out_counts"]
    planes = list(arrays["out_scratch"])
    for batch in np.array_split(rows, batches):
        layout, values = lay_out(*batch.shape), batch.reshape(-1)
        arguments = (values, *layout[:3], kept, counts, 0, *planes)
        launch_plainly(kernel.MEASURE, arguments, grid=grid, block=block)
        sizes = layout.n_parts, layout.n_groups
        launch_plainly(kernel.MERGE, (*planes, *sizes), **flat)
        span = layout.n_parts if layout.n_groups else 0, layout.n_scratch
        numbers = len(batch), 0, np.float32(EPSILON)
        arguments = (*planes, *span, *layout[1:3], values, kept, counts, *numbers)
        launch_plainly(kernel.UPDATE, arguments, **flat)
    return arrays["out_kept"], arrays["out_scratch"]


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        (Axes(1, 1), Axes(1, 1)),
        (Axes(2, 3), Axes(5, 2)),
        (Axes(3, 1), Axes(1, 4)),
        (Axes(1, 2), Axes(64, 1)),
    ],
)
@pytest.mark.parametrize(
    ("shape", "batches"), [((90, 1), 1), ((90, 3), 2), ((70, 40), 1), ((3, 150), 3), ((40, 129), 1)]
)
def test_a_grid_of_any_shape_gives_the_twins_bits(
    shape: tuple[int, int], batches: int, grid: Axes, block: Axes
) -> None:
    rows = 9 + np.random.default_rng(shape).standard_normal(shape, np.float32)
    kept, parts = launch_all(rows, batches, grid, block)
    expected = arrays_for(rows)
    for batch in np.array_split(rows, batches):  # as plain Python, so that nothing is fused
        layout = lay_out(*batch.shape)
        outputs = expected["out_kept"], expected["out_counts"], *expected["out_scratch"]
        assert kernel.update_checked(batch, *outputs, *layout[2:], 0, np.float32(EPSILON))
    assert kept.tobytes() == expected["out_kept"].tobytes()
    assert parts.tobytes() == expected["out_scratch"].tobytes()
    assert_right(kept[:, 0], rows, n_updates=batches)


@pytest.mark.parametrize(("grid", "block"), [(1, 1), (2, 3)])
def test_a_grid_merges_groups_of_parts(grid: int, block: int) -> None:
    rows = np.random.default_rng(0).standard_normal((8200, 1), np.float32)
    assert lay_out(*rows.shape).n_groups > 1
    kept, parts = launch_all(rows, 1, Axes(grid, 1), Axes(block, 1))
    assert parts[0, : lay_out(*rows.shape).n_parts].sum() == len(rows)
    assert parts[0, lay_out(*rows.shape).n_parts :].sum() == len(rows)
    assert_right(kept[:, 0], rows)


# The boundary


def zeros(*shape: int) -> Floats:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("name", "wrong", "error", "message"),
    [
        ("rows", [[1.0]], TypeError, "rows: list, expected numpy.ndarray"),
        ("rows", np.zeros((4, 3)), ValueError, "rows: dtype float64, expected float32"),
        ("rows", np.ones((4, 3), np.uint8), ValueError, "rows: dtype uint8, expected float32"),
        ("rows", zeros(12), ValueError, r"rows: shape \(12,\), expected two axes"),
        ("rows", zeros(3, 4).T, ValueError, "rows: strides .* expected C-contiguous"),
        ("out_kept", zeros(N_KEPT, 3), ValueError, r"out_kept: shape \(6, 3\), expected"),
        ("out_kept", zeros(N_KEPT, 1, 3), ValueError, r"out_kept: .* expected \(6, 42, 3\) = "),
        ("out_kept", None, TypeError, "out_kept: NoneType"),
        ("out_counts", zeros(3), ValueError, "out_counts: dtype float32, expected int64"),
        ("out_counts", np.zeros(2, np.int64), ValueError, r"out_counts: shape \(2,\), expected"),
        ("out_scratch", zeros(2, 99), ValueError, r"out_scratch: shape \(2, 99\), expected \(3, "),
        ("out_scratch", zeros(3, 11), ValueError, r"expected \(3, 12\) or longer"),
        ("out_scratch", np.zeros((3, 12)), ValueError, "out_scratch: dtype float64"),
    ],
)
def test_an_array_that_does_not_fit_is_named(
    name: str, wrong: object, error: type[Exception], message: str
) -> None:
    rows = zeros(4, 3)
    arrays = {"rows": rows, **arrays_for(rows), name: wrong}
    with pytest.raises(error, match=message):
        update_moments(begins_anew=True, epsilon=EPSILON, **arrays)


def test_another_byte_order_is_refused_whatever_came_before() -> None:
    """Numba keeps types of arrays that are read-only, without their byte order."""
    for dtype in (">f4", np.float32, ">f4", np.float32):
        rows = zeros(4, 3).astype(dtype)
        rows.flags.writeable = False
        if dtype == np.float32:
            update_moments(rows, begins_anew=True, epsilon=EPSILON, **arrays_for(rows))
        else:
            with pytest.raises(ValueError, match="rows: dtype >f4, expected float32"):
                update_moments(rows, begins_anew=True, epsilon=EPSILON, **arrays_for(rows))


@pytest.mark.parametrize("name", ["rows", "out_kept", "out_counts", "out_scratch"])
def test_an_array_that_is_not_aligned_is_refused(name: str) -> None:
    rows = zeros(4, 3)
    arrays = {"rows": rows, **arrays_for(rows)}
    right = arrays[name]
    arrays[name] = np.zeros(right.nbytes + 1, np.uint8)[1:].view(right.dtype).reshape(right.shape)
    with pytest.raises(ValueError, match=f"{name}: strides .* aligned"):
        update_moments(begins_anew=True, epsilon=EPSILON, **arrays)


@pytest.mark.parametrize("name", ["out_kept", "out_counts", "out_scratch"])
def test_an_output_that_is_read_only_is_refused(name: str) -> None:
    rows = zeros(4, 3)
    arrays = arrays_for(rows)
    arrays[name].flags.writeable = False
    with pytest.raises(ValueError, match=f"{name}: read-only"):
        update_moments(rows, begins_anew=True, epsilon=EPSILON, **arrays)


@pytest.mark.parametrize(
    "pair",
    [
        *(("rows", "out_kept"), ("out_scratch", "rows"), ("out_counts", "rows")),
        *(("out_counts", "out_kept"), ("out_counts", "out_scratch")),
    ],
)
def test_an_output_that_overlaps_another_array_is_refused(pair: tuple[str, str]) -> None:
    rows = zeros(300, 1)
    arrays = {"rows": rows, **arrays_for(rows)}
    memory, (first, second) = np.zeros(20_000, np.uint8), (arrays[name] for name in pair)
    begin = first.nbytes - 8
    arrays[pair[0]] = memory[: first.nbytes].view(first.dtype).reshape(first.shape)
    part = memory[begin : begin + second.nbytes]
    arrays[pair[1]] = part.view(second.dtype).reshape(second.shape)
    with pytest.raises(ValueError, match="overlaps"):
        update_moments(begins_anew=True, epsilon=EPSILON, **arrays)
    assert (memory == 0).all()
