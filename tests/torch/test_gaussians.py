"""Gaussian, squashed and clipped actions against mpmath, at the bounds too; and their scale."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from long_run import all_but_first
from parllel.cages.values.spaces import to_actions
from parllel.torch.distributions import (
    BoxScale,
    ClippedGaussian,
    Distribution,
    Gaussian,
    GaussianParams,
    SquashedGaussian,
)
from parllel.torch.distributions.diagonal_gaussian import log_ndtr

MEANS = (0.0, 0.4, -1.0, 3.0, -12.0, 30.0)
LOG_STDS = (-5.0, -1.0, 0.0, 1.0, 2.0)
GRID = [(mean, log_std) for mean in MEANS for log_std in LOG_STDS]
WIDE = [(mean, log_std) for mean in MEANS for log_std in (7.0, 10.0)]  # a policy that ran away
LARGEST = 1 - 2**-24
KINDS: dict[str, Any] = {
    "plain": Gaussian,
    "squashed": SquashedGaussian,
    "clipped": ClippedGaussian,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def params_of(distribution: Distribution, mean: Any, log_std: Any) -> Tensor:
    """Return normalized parameters of rows [n] of one number, or [n, k]."""
    mean, log_std = (torch.as_tensor(each, dtype=torch.float32) for each in (mean, log_std))
    mean, log_std = torch.broadcast_tensors(mean, log_std)
    if mean.ndim < 2:
        mean, log_std = mean.reshape(-1, 1), log_std.reshape(-1, 1)
    return distribution.normalize(GaussianParams(mean, log_std)).requires_grad_()


def grid_params(kind: str) -> tuple[Any, Tensor]:
    distribution = KINDS[kind](1)
    return distribution, params_of(distribution, *zip(*GRID, strict=True))


def exact(mean: float, log_std: float) -> tuple[Any, Any]:
    """Return mean and deviation for mpmath, as float32 has them."""
    return mpmath.mpf(float(np.float32(mean))), mpmath.exp(float(np.float32(log_std)))


def log_density(x: Any, mean: Any, std: Any) -> Any:
    return mpmath.log(mpmath.npdf(x, mean, std))


def true_log_prob(kind: str, action: float, mean: Any, std: Any) -> Any:
    """Return the log-probability of an action that float32 has, with 50 digits."""
    if kind == "clipped" and abs(action) == 1:
        return mpmath.log(mpmath.ncdf((-1 + action * mean) / std))
    if kind != "squashed":
        return log_density(mpmath.mpf(action), mean, std)
    inside = mpmath.mpf(max(-LARGEST, min(LARGEST, action)))
    return log_density(mpmath.atanh(inside), mean, std) - mpmath.log(1 - inside**2)


@pytest.fixture(autouse=True)
def many_digits() -> Any:
    with mpmath.workdps(50):
        yield


# Log-probabilities


ACTIONS = (-1.0, -LARGEST, -0.5, 0.0, 1e-3, 0.99, LARGEST, 1.0)


@each_kind
def test_log_probabilities_are_those_of_mpmath_up_to_the_bounds(kind: str) -> None:
    distribution, params = grid_params(kind)
    for action in ACTIONS:
        found = distribution.log_prob(params.detach(), torch.full((len(GRID), 1), action))
        for row, numbers in enumerate(GRID):
            mean, std = exact(*numbers)
            expected = true_log_prob(kind, float(np.float32(action)), mean, std)
            # z**2 / 2 is off by 4 roundings of z and std, and x of a squashed action by 8 * 2**-24.
            assert float(found[row]) == pytest.approx(float(expected), rel=2e-6, abs=2e-5)


def log_prob_of(kind: str, action: float, mean: Any, log_std: Any) -> Any:
    return true_log_prob(kind, action, mean, mpmath.exp(log_std))


@each_kind
def test_gradients_of_log_probabilities_are_right_at_the_bounds(kind: str) -> None:
    distribution, params = grid_params(kind)
    for action in (-1.0, 0.3, 1.0):
        found = distribution.log_prob(params, torch.full((len(GRID), 1), action))
        (slope,) = torch.autograd.grad(found.sum(), params)
        for row, (mean, log_std) in enumerate(GRID):
            m, ls = (mpmath.mpf(float(np.float32(each))) for each in (mean, log_std))
            value = float(np.float32(action))
            log_prob = partial(log_prob_of, kind, value)
            expected = [float(mpmath.diff(log_prob, (m, ls), order)) for order in ((1, 0), (0, 1))]
            assert slope[row, :, 0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_slopes_of_tails() -> None:
    numbers = (-2e4, -3000.0, -150.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 5.0, 12.0)
    z = torch.tensor(numbers, requires_grad=True)
    found = log_ndtr(z)
    (slope,) = torch.autograd.grad(found.sum(), z)
    for i, number in enumerate(numbers):
        exact_z = mpmath.mpf(float(np.float32(number)))
        value = mpmath.log(mpmath.ncdf(exact_z))
        assert found[i].item() == pytest.approx(float(value), rel=1e-6, abs=1e-7)
        expected = float(mpmath.npdf(exact_z) / mpmath.ncdf(exact_z))
        assert slope[i].item() == pytest.approx(expected, rel=1e-6)


def test_rows_sum_up_over_the_numbers_of_an_action() -> None:
    for kind, make in KINDS.items():
        three, one = make(3), make(1)
        mean, log_std = torch.randn(5, 3), 0.3 * torch.randn(5, 3)
        action = three.sample(params_of(three, mean, log_std)).detach()
        assert action.shape == (5, 3)
        parts = [params_of(one, mean[:, [i]], log_std[:, [i]]) for i in range(3)]
        others = [params_of(one, mean[:, [i]] + 1, log_std[:, [i]]) for i in range(3)]
        params, other = params_of(three, mean, log_std), params_of(three, mean + 1, log_std)
        found = [three.log_prob(params, action), three.entropy(params), three.kl(params, other)]
        expected = [
            sum(one.log_prob(part, action[:, [i]]) for i, part in enumerate(parts)),
            sum(map(one.entropy, parts)),
            sum(map(one.kl, parts, others)),
        ]
        torch.testing.assert_close(found, expected, msg=kind)


@pytest.mark.parametrize("kind", ["plain", "squashed"])
def test_drawn_actions_come_with_their_log_probabilities_and_gradients(kind: str) -> None:
    distribution, params = grid_params(kind)
    action, log_prob = distribution.sample_with_log_prob(params, torch.Generator().manual_seed(0))
    same = distribution.sample(params, torch.Generator().manual_seed(0))
    assert torch.equal(action, same)
    assert kind == "plain" or (action.abs() == 1).any()  # saturated rows are among them
    (slope,) = torch.autograd.grad(log_prob.sum(), params, retain_graph=True)
    (of_action,) = torch.autograd.grad(action.sum(), params)
    mean, log_std = (each.detach().double().squeeze(-1) for each in params.unbind(-2))
    noise = torch.empty(len(GRID), 1).normal_(generator=torch.Generator().manual_seed(0)).double()
    x = mean + log_std.exp() * noise.squeeze(-1)
    expected = -0.5 * noise.squeeze(-1) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    by_x, action_by_x = torch.zeros_like(x), torch.ones_like(x)
    if kind == "squashed":
        expected = expected - (2 * math.log(2) - 2 * x.abs() - 2 * (-2 * x.abs()).exp().log1p())
        by_x, action_by_x = 2 * x.tanh(), 1 / x.cosh() ** 2
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(log_prob.double(), expected, **close)
    spread = log_std.exp() * noise.squeeze(-1)
    both = torch.stack([by_x, by_x * spread - 1], dim=-1)
    torch.testing.assert_close(slope.squeeze(-1).double(), both, **close)
    action_slope = torch.stack([action_by_x, action_by_x * spread], dim=-1)
    torch.testing.assert_close(of_action.squeeze(-1).double(), action_slope, **close)


# Entropies and divergences


def integral(function: Callable[[Any], Any], mean: Any, std: Any, low: Any, high: Any) -> Any:
    """Integrate over the part of (low, high) that a normal variable reaches in 12 deviations."""
    points = {low, high, *(mean + k * std for k in range(-12, 13, 6)), mpmath.mpf(0)}
    inside = sorted(x for x in points if low <= x <= high and abs(x - mean) <= 12 * std)
    return mpmath.quad(function, inside) if len(inside) > 1 else mpmath.mpf(0)


def mean_of(mean: Any, std: Any, function: Callable[[Any], Any]) -> Any:
    """Return the mean of a function of clipped actions."""
    low, high = mpmath.mpf(-1), mpmath.mpf(1)
    found = integral(lambda x: mpmath.npdf(x, mean, std) * function(x), mean, std, low, high)
    for bound in (low, high):
        mass = mpmath.ncdf((-1 + bound * mean) / std)
        found += mass * function(bound) if mass > 0 else 0
    return found


def true_entropy(kind: str, mean: Any, std: Any) -> Any:
    if kind == "squashed":
        return squashed_entropy(float(mean), float(std))

    def log_prob(x: Any) -> Any:
        if abs(x) == 1:
            return mpmath.log(mpmath.ncdf((-1 + x * mean) / std))
        return log_density(x, mean, std)

    return -mean_of(mean, std, log_prob)


def squashed_entropy(mean: float, std: float) -> float:
    """Return the entropy by the trapezoidal rule, which is exact to float64 for such functions."""
    z = np.linspace(-12, 12, 20_001)
    x = np.abs(mean + std * z)
    log_slope = 2 * np.log(2) - 2 * x - 2 * np.log1p(np.exp(-2 * x))
    normal = 0.5 * np.log(2 * np.pi * np.e) + np.log(std)
    return float(
        normal + np.sum(np.exp(-0.5 * z**2) * log_slope) * (z[1] - z[0]) / np.sqrt(2 * np.pi)
    )


def entropy_bound(mean: float, log_std: float) -> float:
    return 1e-5 * (1 + math.exp(log_std) + abs(mean))


@pytest.mark.parametrize("kind", ["squashed", "clipped"])
def test_squashed_entropy_and_clipped_entropy(kind: str) -> None:
    distribution, rows = KINDS[kind](1), GRID + WIDE
    found = distribution.entropy(params_of(distribution, *zip(*rows, strict=True)).detach())
    with mpmath.workdps(20):
        for row, numbers in enumerate(rows):
            expected = float(true_entropy(kind, *exact(*numbers)))
            assert abs(float(found[row]) - expected) <= entropy_bound(*numbers), numbers


@pytest.mark.parametrize("kind", ["squashed", "clipped"])
def test_gradients_of_entropies(kind: str) -> None:
    distribution = KINDS[kind](1)
    rows = [(0.7, -1.0), (-2.0, 0.5), (8.0, 2.0), (30.0, -5.0), (40.0, 7.0)]
    params = params_of(distribution, *zip(*rows, strict=True))
    (slope,) = torch.autograd.grad(distribution.entropy(params).sum(), params)
    step = mpmath.mpf("1e-4")
    with mpmath.workdps(20):
        for row, (m, ls) in enumerate(rows):
            ends = [true_entropy(kind, m + sign * step, mpmath.exp(ls)) for sign in (1, -1)]
            others = [true_entropy(kind, mpmath.mpf(m), mpmath.exp(ls + s * step)) for s in (1, -1)]
            expected = [float((up - down) / (2 * step)) for up, down in (ends, others)]
            assert slope[row, :, 0].tolist() == pytest.approx(expected, rel=1e-4, abs=2e-5)


def test_gaussian_entropy_and_divergence_are_those_of_torch() -> None:
    distribution, params = grid_params("plain")
    mean, log_std = params.detach().double().squeeze(-1).unbind(-1)
    reference = torch.distributions.Normal(mean, log_std.exp())
    torch.testing.assert_close(distribution.entropy(params).double(), reference.entropy())
    other = params_of(distribution, mean.float() + 0.5, 0.5 * log_std.float())
    other_mean, other_log_std = other.detach().double().squeeze(-1).unbind(-1)
    expected = torch.distributions.kl_divergence(
        reference, torch.distributions.Normal(other_mean, other_log_std.exp())
    )
    for each in ("plain", "squashed"):  # the square does not change it
        found = KINDS[each](1).kl(params, other).double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def clipped_log_ratio(x: Any, p: tuple[Any, Any], q: tuple[Any, Any]) -> Any:
    if abs(x) == 1:
        log_p, log_q = (mpmath.log(mpmath.ncdf((-1 + x * mean) / std)) for mean, std in (p, q))
        return log_p - log_q
    return log_density(x, *p) - log_density(x, *q)


@pytest.mark.parametrize(
    ("by_mean", "by_log"), all_but_first([(-1.0, 0.7), (0.5, 0.0), (0.1, -0.4)])
)
def test_divergences_of_clipped_actions_are_those_of_mpmath(by_mean: float, by_log: float) -> None:
    clipped = ClippedGaussian(1)
    rows = [(mean, log_std) for mean, log_std in GRID if log_std >= -1]
    others = [(mean + by_mean, log_std + by_log) for mean, log_std in rows]
    params = params_of(clipped, *zip(*rows, strict=True))
    found = clipped.kl(params, params_of(clipped, *zip(*others, strict=True)))
    (slope,) = torch.autograd.grad(found.sum(), params)
    assert slope.isfinite().all()
    with mpmath.workdps(20):
        for row, (one, another) in enumerate(zip(rows, others, strict=True)):
            (p, p_std), (q, q_std) = exact(*one), exact(*another)
            log_ratio = partial(clipped_log_ratio, p=(p, p_std), q=(q, q_std))
            expected = float(mean_of(p, p_std, log_ratio))
            assert found[row].item() == pytest.approx(expected, rel=2e-5, abs=2e-5), one


@each_kind
def test_a_distribution_does_not_diverge_from_itself(kind: str) -> None:
    distribution, params = grid_params(kind)
    found = distribution.kl(params, params.detach())
    assert float(found.detach().abs().max()) <= 1e-6
    (slope,) = torch.autograd.grad(found.sum(), params)
    np.testing.assert_allclose(slope, 0, atol=1e-4 * math.exp(5))  # 1 / std for the narrowest


# Samples


@pytest.mark.parametrize(("mean", "log_std"), all_but_first([(0.7, -0.5), (0.0, 0.0), (-1.5, 0.3)]))
@each_kind
def test_actions_are_drawn_with_their_probabilities(kind: str, mean: float, log_std: float) -> None:
    """By counts in 12 equal parts of the normal variable's probability."""
    n, distribution = 24_000, KINDS[kind](1)
    params = params_of(distribution, [mean], [log_std]).detach().expand(n, -1, -1)
    action = distribution.sample(params, torch.Generator().manual_seed(0)).double().squeeze(-1)
    edges = [mean + math.exp(log_std) * float(mpmath.sqrt(2) * mpmath.erfinv(2 * q / 12 - 1))
             for q in map(mpmath.mpf, range(1, 12))]  # fmt: skip
    if kind == "squashed":
        edges = [math.tanh(edge) for edge in edges]
    counts = np.histogram(action, [-math.inf, *edges, math.inf])[0].astype(float)
    expected = np.full(12, n / 12)
    if kind == "clipped":
        assert action.abs().max() == 1
        for bound in (-1, 1):
            share = float((action == bound).double().mean())
            mass = float(mpmath.ncdf((-1 + bound * mean) / math.exp(log_std)))
            assert abs(share - mass) < 5 * math.sqrt(mass * (1 - mass) / n) + 1e-9
        within = (np.array([-math.inf, *edges]) >= -1) & (np.array([*edges, math.inf]) <= 1)
        counts, expected = counts[within], expected[within]
    # At most 12 terms: P(chi_square > 50) is below 1e-6.
    assert ((counts - expected) ** 2 / expected).sum() < 50
    again = distribution.sample(params, torch.Generator().manual_seed(0)).double().squeeze(-1)
    assert torch.equal(action, again)
    one_mode = distribution.mode(params[:1]).item()
    own = {"plain": mean, "squashed": math.tanh(mean), "clipped": max(-1, min(1, mean))}[kind]
    assert one_mode == pytest.approx(own, rel=1e-6)


@each_kind
def test_parameters_that_only_broadcast_are_refused(kind: str) -> None:
    distribution = KINDS[kind](2)
    for mean, log_std in ((torch.zeros(3, 2), torch.zeros(2)), (torch.zeros(3, 1),) * 2):
        with pytest.raises(ValueError, match=r"dist_params: mean .* expected \(\.\.\., 2\)"):
            distribution.normalize(GaussianParams(mean, log_std))
    with pytest.raises(TypeError, match="dist_params: got a Tensor, expected GaussianParams"):
        distribution.normalize(torch.zeros(3, 4))
    good = GaussianParams(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="action_mask: got one, expected none"):
        distribution.normalize(good, torch.ones(3, 2))
    with pytest.raises(ValueError, match="dim: got 0"):
        KINDS[kind](0)


# The scale of a Box


@st.composite
def boxes(draw: Any) -> spaces.Box:
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    width = 32 if dtype == np.float32 else 64
    number = st.floats(-(2.0**126), 2.0**126, width=width, allow_subnormal=False)
    pairs = draw(st.lists(st.tuples(number, number), min_size=1, max_size=3))
    low, high = (np.array(each, dtype) for each in zip(*map(sorted, pairs), strict=True))
    apart = (np.float32(high) / 2 - np.float32(low) / 2) > np.finfo(np.float32).tiny
    low, high = np.where(apart, low, dtype(-1)), np.where(apart, high, dtype(1))
    return spaces.Box(low, high, dtype=dtype)


@given(boxes(), st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6))
def test_scaled_actions_never_leave_the_space(box: spaces.Box, numbers: list[float]) -> None:
    scale = BoxScale(box, len(box.low))
    numbers = [*numbers, -1.0, 1.0, -LARGEST, LARGEST, 0.0, -2.0, 9.0]
    own = torch.tensor(numbers).unsqueeze(-1).expand(-1, len(box.low))
    action = scale.to_space(own)
    assert action.dtype == torch.float32
    for each in to_actions(action.numpy(), box):  # as environments get them
        assert box.contains(each)
    low, high = box.low.astype(np.float32), box.high.astype(np.float32)
    assert (action[own <= -1] == torch.from_numpy(low).expand_as(own)[own <= -1]).all()
    assert (action[own >= 1] == torch.from_numpy(high).expand_as(own)[own >= 1]).all()
    back = scale.from_space(action)
    assert (back[own <= -1] == -1).all()
    assert (back[own >= 1] == 1).all()
    middle, half = (low.astype(float) + high) / 2, (high.astype(float) - low) / 2
    off = (back - own.clamp(-1, 1)).abs().numpy()
    # Middle, half, product, sum and difference are rounded, relative to the largest of them.
    assert (off <= 6 * 2**-24 * (np.abs(middle) + half) / half).all()


def test_a_unit_box_is_left_as_it_is_and_nan_stays_nan() -> None:
    scale = BoxScale(spaces.Box(-1, 1, (1,)), 1)
    own = torch.tensor([[1e-30], [0.3], [-0.7], [torch.nan]])
    assert torch.equal(scale.to_space(own).nan_to_num(), own.nan_to_num())
    assert scale.to_space(own)[-1].isnan().all()
    assert scale.from_space(own)[-1].isnan().all()


def test_wide_and_short_floats_keep_their_dtype() -> None:
    wide = spaces.Box(np.array([-1e300]), np.array([1e300]), dtype=np.float64)
    short = spaces.Box(np.float16([0.1]), np.float16([0.3]), dtype=np.float16)
    far = BoxScale(wide, 1).to_space(torch.tensor([[0.5]]))
    assert far.item() == 5e299
    assert torch.equal(BoxScale(wide, 1).from_space(far), torch.tensor([[0.5]]))
    scale = BoxScale(short, 1)
    action = scale.to_space(torch.linspace(-1, 1, 999).unsqueeze(-1))
    assert action.dtype == torch.float16
    assert all(short.contains(each) for each in action.numpy())


FINITE = spaces.Box(-1, 1, (2,))
UNBOUNDED = spaces.Box(-np.inf, np.inf, (2,))
HALF = spaces.Box(np.float32([0, 0]), np.float32([1, np.inf]))


@pytest.mark.parametrize(
    ("kind", "space", "error"),
    [
        ("plain", FINITE, "expected a Box without bounds"),
        ("plain", HALF, "expected a Box without bounds"),
        ("plain", spaces.Box(-np.inf, np.inf, (2,), np.float16), "expected floats of 32 or 64"),
        ("squashed", UNBOUNDED, "expected finite bounds"),
        ("clipped", HALF, "expected finite bounds"),
        ("squashed", spaces.Box(np.float32([0, 1]), np.float32([1, 1])), "bounds that are less"),
        ("clipped", spaces.Box(0, 5, (2,), np.int32), "expected a Box of floats"),
        ("plain", spaces.Box(0, 5, (2,), np.uint8), "expected a Box of floats"),
        ("squashed", spaces.Box(-1, 1, (3,)), r"expected the shape \(2,\)"),
        ("clipped", spaces.Box(-1, 1, (1, 2)), r"expected the shape \(2,\)"),
        ("plain", spaces.Discrete(2), "expected a Box;"),
        ("squashed", spaces.MultiDiscrete([2, 2]), "expected a Box;"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(kind: str, space: Any, error: str) -> None:
    distribution = KINDS[kind](2)
    with pytest.raises((TypeError, ValueError), match=f"action space: got .*{error}"):
        distribution.map_actions(space, params_of(distribution, torch.zeros(1, 2), 0.0))
    params = params_of(distribution, torch.zeros(1, 2), 0.0)
    fits = distribution.map_actions(UNBOUNDED if kind == "plain" else FINITE, params)
    assert (fits is None) == (kind == "plain")
