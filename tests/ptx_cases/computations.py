"""Cases of the entries that compute with floats: advantages, moments, normalization."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from parllel import cuda
from parllel.kernels.moment_layout import (
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
from parllel.kernels.moments import update_moments as update_on_host
from parllel.ops.advantage import estimate_advantage
from parllel.ops.launching import find_span
from parllel.ops.moments import update_moments
from parllel.ops.normalize import normalize
from parllel.ops.running_returns import sum_rewards
from ptx_cases.comparing import assert_floats, assert_near
from ptx_machine import floats

Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_U = 2.0**-24  # half of a float32's last digit
_EPSILON = 1e-6


# Advantages


class _Batch(NamedTuple):
    reward: Singles
    value: Singles
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    final_value: Singles


def _draw_batch(rng: np.random.Generator, steps: int, width: int) -> _Batch:
    ends = rng.choice([0, 0.1, 1])
    terminated, truncated = rng.random((2, steps, width)) < ends
    reward = 3 * rng.standard_normal((steps, width), np.float32)
    value, final = (rng.standard_normal((n, width), np.float32) for n in (steps + 1, steps))
    final[~truncated | terminated] = np.nan  # what is not used may be anything
    return _Batch(reward, value, terminated, truncated, final)


class _Factors(NamedTuple):
    discount: Singles
    decay: Singles


def _walk(
    batch: _Batch, by: _Factors, begin: int, end: int, carry: Singles
) -> tuple[Singles, Singles]:
    """Return the advantages of some steps, and how much the carry contributes to the first.

    That is the docstring's formula in float32, where each product is fused with its sum.
    """
    advantage, share = np.empty_like(batch.reward[begin:end]), np.ones_like(carry)
    for t in range(end - 1, begin - 1, -1):
        following = np.where(batch.truncated[t], batch.final_value[t], batch.value[t + 1])
        target = floats.multiply_add(by.discount, following, batch.reward[t])
        delta = np.where(batch.terminated[t], batch.reward[t], target) - batch.value[t]
        is_end = batch.terminated[t] | batch.truncated[t]
        carry = np.where(is_end, delta, floats.multiply_add(by.decay, carry, delta))
        share = share * np.where(is_end, np.float32(0), by.decay)
        advantage[t - begin] = carry
    return advantage, share


def _advantage(batch: _Batch, by: _Factors, span: int) -> Singles:
    """Return the advantages as they are rounded where spans of time are walked at once.

    Each is walked without a carry first, to find the carries from the last one to the first.
    """
    steps, width = batch.reward.shape
    spans = [(begin, min(begin + span, steps)) for begin in range(0, steps, span)]
    carry = np.zeros(width, np.float32)
    parts = []
    for begin, end in reversed(spans):
        parts.append(_walk(batch, by, begin, end, carry)[0])
        first, share = _walk(batch, by, begin, end, np.zeros(width, np.float32))
        joined = floats.multiply_add(share, carry, first[0])
        carry = np.where(share == 0, first[0], joined)
    return np.concatenate(parts[::-1])


def _exact_advantage(batch: _Batch, discount: float, decay: float) -> tuple[Doubles, Doubles]:
    """Return the same in float64, and the magnitudes that the bound of its error is made of."""
    reward, value, final = (each.astype(np.float64) for each in (batch[0], batch[1], batch[4]))
    advantage, size = np.zeros((2, len(reward) + 1, reward.shape[1]))
    for t in range(len(reward) - 1, -1, -1):
        following = np.where(batch.truncated[t], final[t], value[t + 1])
        following = discount * np.where(batch.terminated[t], 0, following)
        carry = np.where(batch.terminated[t] | batch.truncated[t], 0, decay)
        advantage[t] = reward[t] + following - value[t] + carry * advantage[t + 1]
        size[t] = abs(reward[t]) + abs(following) + abs(value[t]) + carry * size[t + 1]
    return advantage[:-1], size[:-1] + abs(value[:-1])


def _estimate(rng: np.random.Generator, steps: int, width: int) -> None:
    """Compare with the formula's bits, and with float64 within the docstring's bound."""
    batch = _draw_batch(rng, steps, width)
    discount, trace = float(rng.choice([0, 0.99, 1])), float(rng.choice([0, 0.95, 1]))
    advantage, returns = (cuda.to_device(np.full((steps, width), 5, np.float32)) for _ in range(2))
    estimate_advantage(
        *map(cuda.to_device, batch),
        discount=discount,
        gae_lambda=trace,
        out_advantage=advantage,
        out_return=returns,
    )
    by = _Factors(np.array([discount], np.float32), np.array([discount * trace], np.float32))
    with np.errstate(invalid="ignore", under="ignore"):
        expected = _advantage(batch, by, find_span(steps, width))
        exact, size = _exact_advantage(batch, *(float(factor[0]) for factor in by))
    bound = (steps + 1) * 2.0**-22 * size
    assert_near("advantage", advantage, exact, bound)
    assert_near("return", returns, exact + batch.value[:-1], bound)
    assert_floats("return", returns, cuda.to_host(advantage) + batch.value[:-1])
    assert_floats("advantage", advantage, expected)


def walk_steps(rng: np.random.Generator) -> None:
    """Batches that are not divided."""
    _estimate(
        rng, int(rng.choice([1, 2, 15, 16, 17, 31, 128])), int(rng.choice([1, 2, 31, 33, 100]))
    )


def walk_spans(rng: np.random.Generator) -> None:
    """Batches in which spans of time are walked at once, and joined."""
    _estimate(rng, int(rng.choice([256, 257, 300, 700])), int(rng.choice([1, 2, 31, 33])))


# Running returns


def sum_up(rng: np.random.Generator) -> None:
    """Compare with the formula's bits, in which each product is fused with its sum."""
    steps, n_envs = int(rng.choice([0, 1, 15, 16, 17, 40])), int(rng.choice([1, 2, 31, 33]))
    n_rewards = int(rng.choice([1, 1, 3]))
    terminated, truncated = rng.random((2, steps, n_envs)) < rng.choice([0, 0.1, 1])
    reward = rng.standard_normal((steps, n_envs * n_rewards), np.float32)
    begin = rng.standard_normal(n_envs * n_rewards, np.float32)
    returns, end = (cuda.to_device(np.full_like(each, 5)) for each in (reward, begin))
    discount = float(rng.choice([0, 0.99, 1]))
    sum_rewards(
        *map(cuda.to_device, (reward, terminated, truncated, begin)),
        discount=discount,
        out_return=returns,
        out_end=end,
    )
    carry, expected = begin, np.empty_like(reward)
    is_end = np.repeat(terminated | truncated, n_rewards, axis=1)
    for t in range(steps):
        expected[t] = floats.multiply_add(np.array([discount], np.float32), carry, reward[t])
        carry = np.where(is_end[t], np.float32(0), expected[t])
    assert_floats("return", returns, expected)
    assert_floats("end", end, carry)


# Moments


def _bound(rows: Doubles) -> Doubles:
    """Return the c of the docstring of `kernels.moments.update_moments` for each feature."""
    deviation, distance = rows.std(axis=0), abs(rows.mean(axis=0) - rows[0])
    ratio = np.divide(distance, deviation, out=np.zeros_like(distance), where=deviation > 0)
    return (512 + len(rows) ** 0.5 / 2 + 8 * ratio) * _U


def _assert_moments(kept: Singles, rows: Doubles, n_updates: int) -> None:
    """Compare with double precision; what is kept beside agrees with what it is made of."""
    mean, variance = rows.mean(axis=0), rows.var(axis=0)
    bound = _bound(rows) * (1 if n_updates == 1 else 4 * n_updates**1.5)
    error = abs(kept[VARIANCE] - variance)
    assert (error <= bound * variance).all(), "variance: off from the reference"
    error = abs(kept[MEAN] - mean)
    assert (error <= bound * np.sqrt(variance) + _U * abs(mean)).all(), (
        "mean: off from the reference"
    )
    assert (kept[SHIFT] == rows[0]).all(), "shift: differs from the reference"
    assert (kept[MEAN] == kept[SHIFT] + kept[OFFSET]).all(), "mean: differs from the reference"
    inverse = np.float32(1 / len(rows))
    assert (kept[VARIANCE] == kept[M2] * inverse).all(), "variance: differs from the reference"
    scale = 1 / (np.sqrt(kept[VARIANCE]) + np.float32(_EPSILON))
    assert (kept[SCALE] == scale).all(), "scale: differs from the reference"


def _draw_rows(rng: np.random.Generator, n: int, n_features: int) -> Singles:
    scale, mean = rng.choice([1e-3, 1, 100]), rng.choice([0, 1000])
    return (scale * rng.standard_normal((n, n_features)) + mean).astype(np.float32)


def _update(rng: np.random.Generator, n_rows: list[int], n_features: int) -> None:
    shape = N_KEPT, count_copies(n_features), n_features
    kept_on_host = np.full(shape, np.nan, np.float32)
    begins_anew = bool(rng.integers(2))  # whatever is counted
    counts_on_host = np.full(n_features, 77 * begins_anew)
    kept, counts = cuda.to_device(kept_on_host), cuda.to_device(counts_on_host)
    seen: list[Singles] = []
    for n in n_rows:
        rows = _draw_rows(rng, n, n_features)
        scratch = np.full((N_PLANES, lay_out(n, n_features).n_scratch + 1), np.nan, np.float32)
        numbers = {"begins_anew": begins_anew and not seen, "epsilon": _EPSILON}
        given = {"out_kept": kept, "out_counts": counts, "out_scratch": cuda.to_device(scratch)}
        own = {"out_kept": kept_on_host, "out_counts": counts_on_host, "out_scratch": scratch}
        update_moments(cuda.to_device(rows), **numbers, **given)
        update_on_host(rows, **numbers, **own)
        seen.append(rows)
        assert (cuda.to_host(counts) == sum(map(len, seen))).all(), "counts: differ"
        found = cuda.to_host(kept)
        assert (found == found[:, :1]).all(), "moments: copies differ"
        _assert_moments(found[:, 0], np.concatenate(seen).astype(np.float64), len(seen))
        assert_floats("moments", kept, kept_on_host)  # the bits that the twin has


def measure(rng: np.random.Generator) -> None:
    """Updates with few rows, one after the other."""
    n_rows = [int(n) for n in rng.choice([2, 31, 33, 300, 1000], 3)]
    _update(rng, n_rows, int(rng.choice([1, 2, 3, 5, 127, 128, 129])))


def measure_many(rng: np.random.Generator) -> None:
    """Updates with so many rows that their parts are merged in two steps."""
    _update(rng, [int(rng.choice([8225, 9000]))], int(rng.choice([1, 2])))


# Normalization


def scale_values(rng: np.random.Generator) -> None:
    """Values of every kind, with and without bounds: the bits of NumPy's float32."""
    n, n_features = int(rng.choice([1, 2, 100, 700])), int(rng.choice([1, 3, 127, 150]))
    values = 10 * rng.standard_normal((n, n_features), np.float32)
    odd = rng.choice(np.array([np.nan, np.inf, -np.inf, -0.0], np.float32), values.shape)
    values = np.where(rng.random(values.shape) < 0.05, odd, values)
    kept = np.full((N_KEPT, count_copies(n_features), n_features), np.nan, np.float32)
    for row in (SHIFT, OFFSET, SCALE):
        kept[row] = rng.standard_normal(n_features)
    low, high = (-2.0, 3.0) if rng.random() < 0.6 else (-np.inf, np.inf)
    out = cuda.to_device(np.full_like(values, 5))
    normalize(cuda.to_device(values), cuda.to_device(kept), low=low, high=high, out_values=out)
    with np.errstate(invalid="ignore"):
        scaled = ((values - kept[SHIFT, 0]) - kept[OFFSET, 0]) * kept[SCALE, 0]
        expected = np.minimum(np.maximum(scaled, np.float32(low)), np.float32(high))
    assert_floats("normalize", out, expected)
