"""RunningMoments on the host: what they hold, what they make of rows, how they are saved."""

import math
import pickle
from typing import Any

import numpy as np
import pytest

from parllel import Array
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.transforms import NormalizeAdvantage, RunningMoments

T, B = 20, 6
U = 2.0**-24  # of float32
each_features = pytest.mark.parametrize("features", [(), (1,), (3,), (4, 40)])


def make_rows(
    seed: int = 0, features: tuple[int, ...] = (3,), n_steps: int = T, **options: Any
) -> Array:
    rows = Array((n_steps, B), np.float32, feature_shape=features, **options)
    rng = np.random.default_rng(seed)
    rows[...] = rng.normal(10 * seed, 1 + seed, rows.shape)
    return rows


def flat(*batches: Array) -> np.ndarray:
    """Return the samples of all batches in double precision: [n, F...]."""
    values = [rows.to_ndarray().astype(np.float64) for rows in batches]
    return np.concatenate([each.reshape(-1, *each.shape[2:]) for each in values])


def error_bound(samples: np.ndarray, n_updates: int) -> np.ndarray:
    """Return the c of the docstrings, as a factor of variance and deviation."""
    distance = abs(samples.mean(axis=0) - samples[0]) / samples.std(axis=0)
    c = (512 + math.sqrt(len(samples)) / 2 + 8 * distance) * U
    return c if n_updates == 1 else 4 * n_updates**1.5 * c


@each_features
def test_running_moments_are_those_of_all_rows_together(features: tuple[int, ...]) -> None:
    batches = [make_rows(seed, features, n_steps=n) for seed, n in enumerate((T, 1, 70, 5))]
    moments = RunningMoments(batches[0])
    for number, rows in enumerate(batches, 1):
        moments.update(rows)
        samples = flat(*batches[:number])
        c = error_bound(samples, number)
        mean, variance = samples.mean(axis=0), samples.var(axis=0)
        assert moments.count == len(samples)
        assert moments.mean.shape == moments.variance.shape == features
        error = abs(moments.variance.to_ndarray() - variance)
        assert (error <= c * variance).all()
        error = abs(moments.mean.to_ndarray() - mean)
        assert (error <= c * np.sqrt(variance) + U * abs(mean)).all()


def test_a_constant_feature_beside_others_has_no_variance() -> None:
    rows = make_rows()
    rows[..., 1] = 0.7
    moments = RunningMoments(rows)
    moments.update(rows)
    moments.update(rows)
    assert moments.variance[1].item() == 0
    assert moments.mean[1].item() == np.float32(0.7)
    assert (moments.normalize(rows)[..., 1].to_ndarray() == 0).all()


@pytest.mark.parametrize("storage", ["local", "shared", "inherited", "pinned"])
def test_moments_live_in_the_rows_kind_of_memory(storage: str) -> None:
    with simulated_cuda("lazy") as simulation:
        rows, expected = make_rows(storage=storage), make_rows()
        moments, other = RunningMoments(rows), RunningMoments(expected)
        moments.update(rows)
        other.update(expected)
        normalized = moments.normalize(rows)
        assert {each.storage for each in (moments.mean, moments.variance, normalized)} == {storage}
        assert (normalized.to_ndarray() == other.normalize(expected).to_ndarray()).all()
        assert not simulation.launches


@each_features
def test_rows_are_normalized_by_what_was_seen(features: tuple[int, ...]) -> None:
    seen, rows = make_rows(1, features), make_rows(2, features, n_steps=3)
    moments = RunningMoments(seen, epsilon=0.5)
    moments.update(seen)
    mean, deviation = moments.mean.to_ndarray(), np.sqrt(moments.variance.to_ndarray())
    expected = (rows.to_ndarray() - mean) / (deviation + np.float32(0.5))
    # A rounding for each operation, of numbers below 32 here.
    np.testing.assert_allclose(moments.normalize(rows), expected, rtol=0, atol=32 * 6 * U)
    clipped = moments.normalize(rows, clip=2).to_ndarray()
    assert abs(clipped).max() == 2
    np.testing.assert_allclose(clipped, np.clip(expected, -2, 2), rtol=0, atol=32 * 6 * U)


def test_normalized_rows_go_where_they_are_wanted() -> None:
    rows = make_rows(full_size=3 * T)
    rows.rotate()
    rows[...] = np.random.default_rng(3).random(rows.shape)
    moments = RunningMoments(rows)
    moments.update(rows)
    out = rows.new_array(padding=1)
    assert moments.normalize(rows, out=out) is out
    assert (out.to_ndarray() == moments.normalize(rows).to_ndarray()).all()
    assert (out[-1].to_ndarray() == 0).all()
    assert moments.normalize(rows[:2]).shape == (2, B, 3)
    assert moments.normalize(rows) is moments.normalize(rows)


def test_one_mean_may_be_taken_of_all_numbers() -> None:
    rows = make_rows(2)
    moments = RunningMoments(rows, feature_shape=())
    moments.update(rows)
    assert moments.count == rows.size
    samples = flat(rows).reshape(-1, 1)
    c = error_bound(samples, 1)
    assert abs(moments.variance.item() - samples.var()) <= c * samples.var()
    assert moments.normalize(rows).shape == rows.shape


def test_rows_that_are_not_contiguous_count_as_well() -> None:
    rows = make_rows()
    moments, expected = RunningMoments(rows), RunningMoments(rows)
    copied = Array((T, 2), np.float32, feature_shape=(3,))
    copied[...] = rows[:, 1:3]
    moments.update(rows[:, 1:3])
    expected.update(copied)
    assert (moments.mean.to_ndarray() == expected.mean.to_ndarray()).all()
    assert (moments.normalize(rows[:, 1:3]).to_ndarray() == expected.normalize(copied)).all()


def test_reset_forgets_all_rows() -> None:
    rows = make_rows(1)
    moments, expected = RunningMoments(rows), RunningMoments(rows)
    spoiled = make_rows()
    spoiled[3, 2] = np.nan
    moments.update(spoiled)
    assert np.isnan(moments.mean.to_ndarray()).all()
    moments.reset()
    assert moments.count == 0
    moments.update(rows)
    expected.update(rows)
    assert (moments.mean.to_ndarray() == expected.mean.to_ndarray()).all()
    assert (moments.variance.to_ndarray() == expected.variance.to_ndarray()).all()


def test_no_rows_change_nothing() -> None:
    rows = make_rows()
    moments = RunningMoments(rows)
    moments.update(rows[:0])
    assert moments.count == 0
    assert moments.normalize(rows[:0]).shape == (0, B, 3)
    moments.update(rows)
    before = moments.state_dict()
    moments.update(rows[:0])
    assert all((moments.state_dict()[name] == value).all() for name, value in before.items())


def test_rows_without_features_are_counted() -> None:
    rows = make_rows(features=(0,))
    moments = RunningMoments(rows)
    moments.update(rows)
    assert moments.count == T * B
    assert moments.mean.shape == (0,)
    assert moments.normalize(rows).shape == rows.shape


@each_features
@pytest.mark.parametrize("epsilon", [1e-8, 0, 0.1])
def test_restored_moments_go_on_bit_for_bit(features: tuple[int, ...], epsilon: float) -> None:
    rows = make_rows(1, features)
    rows.to_ndarray().reshape(T * B, -1)[:, 0] = 7  # the first feature never differs
    moments, restored = (RunningMoments(rows, epsilon=epsilon) for _ in range(2))
    moments.update(rows)
    saved = pickle.loads(pickle.dumps(moments.state_dict()))
    moments.update(make_rows(2, features))
    assert saved["count"] == T * B  # and what was saved did not move
    restored.load_state_dict(saved)
    first = RunningMoments(rows, epsilon=epsilon)
    first.update(rows)
    for name in ("mean", "variance"):
        assert getattr(restored, name).to_ndarray().tobytes() == (
            getattr(first, name).to_ndarray().tobytes()
        )
    normalized = restored.normalize(rows).to_ndarray()
    assert normalized.tobytes() == first.normalize(rows).to_ndarray().tobytes()
    restored.update(make_rows(2, features))
    for name, value in moments.state_dict().items():
        assert restored.state_dict()[name].tobytes() == value.tobytes()


def test_a_state_that_does_not_fit_is_refused() -> None:
    rows = make_rows()
    moments = RunningMoments(rows)
    moments.update(rows)
    state = moments.state_dict()
    with pytest.raises(ValueError, match=r"offset: shape \(2,\), expected \(3,\)"):
        moments.load_state_dict({**state, "offset": np.zeros(2)})
    with pytest.raises(KeyError, match="m2"):
        moments.load_state_dict({name: state[name] for name in ("count", "shift", "offset")})
    assert all((moments.state_dict()[name] == value).all() for name, value in state.items())


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.int32])
def test_rows_of_another_dtype_are_refused(dtype: type) -> None:
    other = Array((T, B), dtype, feature_shape=(3,))
    with pytest.raises(ValueError, match=f"like: dtype {np.dtype(dtype)}, expected float32"):
        RunningMoments(other)
    rows = make_rows()
    moments = RunningMoments(rows)
    with pytest.raises(ValueError, match=f"rows: dtype {np.dtype(dtype)}, expected float32"):
        moments.update(other)
    moments.update(rows)
    with pytest.raises(ValueError, match=f"rows: dtype {np.dtype(dtype)}"):
        moments.normalize(other)
    with pytest.raises(ValueError, match=f"out: dtype {np.dtype(dtype)}"):
        moments.normalize(rows, out=other)


def test_what_makes_no_sense_is_refused() -> None:
    rows = make_rows()
    moments = RunningMoments(rows)
    with pytest.raises(RuntimeError, match="no row was seen yet; call update first"):
        moments.normalize(rows)
    moments.update(rows)
    with pytest.raises(ValueError, match=r"rows: shape \(20, 6, 2\), expected .* \(3,\)"):
        moments.update(make_rows(features=(2,)))
    with pytest.raises(ValueError, match="clip: got 0, expected more than 0"):
        moments.normalize(rows, clip=0)
    with pytest.raises(ValueError, match="overlaps"):
        moments.normalize(rows, out=rows)
    with pytest.raises(ValueError, match=r"shape \(2, 6, 3\), expected \(20, 6, 3\)"):
        moments.normalize(rows, out=rows.new_array()[:2])
    with pytest.raises(ValueError, match="C-contiguous"):
        moments.normalize(rows[:, :2], out=rows.new_array()[:, :2])
    with pytest.raises(IndexError, match="made with integer arrays"):
        moments.normalize(rows[:2], out=rows.new_array()[[3, 5]])
    for make in (lambda: RunningMoments(rows, epsilon=-1), lambda: NormalizeAdvantage(epsilon=-1)):
        with pytest.raises(ValueError, match="epsilon: got -1, expected 0 or more"):
            make()
