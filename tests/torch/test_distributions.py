"""Distributions of several choices and with masks, against those of torch and sums by hand."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from parllel.torch.distributions import Categorical, DistParams, Distribution, MultiCategorical

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
NVECS = [[3], [2, 3], [4, 1, 2], [2, 2, 2]]


def parts_of(logits: Tensor, nvec: list[int]) -> list[torch.distributions.Categorical]:
    return [torch.distributions.Categorical(logits=part) for part in logits.split(nvec, dim=-1)]


def random_logits(nvec: list[int], n: int = 50, seed: int = 0) -> Tensor:
    return 2 * torch.randn(n, sum(nvec), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("nvec", NVECS)
@pytest.mark.parametrize("kind", ["logits", "probs"])
def test_choices_side_by_side_are_independent_ones(nvec: list[int], kind: str) -> None:
    logits, others = random_logits(nvec), random_logits(nvec, seed=1)
    parts, other_parts = parts_of(logits, nvec), parts_of(others, nvec)
    given = logits if kind == "logits" else torch.cat([part.probs for part in parts], dim=-1)
    multi = MultiCategorical(nvec)
    params = multi.normalize(DistParams(**{kind: given}))
    assert params.shape == (50, *multi.params_shape)
    action = multi.sample(params, torch.Generator().manual_seed(0))
    assert action.shape == (50, len(nvec))
    assert (action < torch.tensor(nvec)).all()
    log_prob = sum(part.log_prob(action[:, i]) for i, part in enumerate(parts))
    torch.testing.assert_close(multi.log_prob(params, action), log_prob, **CLOSE)
    entropy = sum(part.entropy() for part in parts)
    torch.testing.assert_close(multi.entropy(params), entropy, **CLOSE)
    assert torch.equal(multi.mode(params), torch.stack([part.mode for part in parts], dim=-1))
    kl = sum(map(torch.distributions.kl_divergence, parts, other_parts))
    found = multi.kl(params, multi.normalize(DistParams(logits=others)))
    torch.testing.assert_close(found, kl, **CLOSE)


def test_all_pairs_of_two_choices_come_with_their_probabilities() -> None:
    nvec, n = [2, 3], 60_000
    logits = random_logits(nvec, n=1)
    multi = MultiCategorical(nvec)
    params = multi.normalize(DistParams(logits=logits.expand(n, -1)))
    action = multi.sample(params, torch.Generator().manual_seed(0))
    first, second = (part.probs[0].tolist() for part in parts_of(logits, nvec))
    chi_square = 0.0
    for a, b in itertools.product(range(2), range(3)):
        expected = n * first[a] * second[b]
        count = int(((action[:, 0] == a) & (action[:, 1] == b)).sum())
        chi_square += (count - expected) ** 2 / expected
    # 5 degrees of freedom: P(chi_square > 35.9) is 1e-6 (its mean is 5, its deviation 3.2).
    assert chi_square < 35.9


def kl_by_sums(p: Tensor, q: Tensor) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p.tolist(), q.tolist(), strict=True))


def test_the_divergence_of_a_distribution_from_another_one() -> None:
    p, q = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.3, 0.1])
    three = Categorical(3)
    log_p, log_q = (three.normalize(DistParams(probs=each)) for each in (p, q))
    assert three.kl(log_p, log_q).item() == pytest.approx(kl_by_sums(p, q), rel=1e-5)
    assert three.kl(log_p, log_p).item() == 0


DISTRIBUTIONS: list[Distribution] = [Categorical(4), MultiCategorical([2, 2])]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=["one choice", "two choices"])
def test_a_mask_leaves_the_rest_of_the_distribution(
    distribution: Distribution, dtype: torch.dtype
) -> None:
    logits = random_logits([4], n=3).requires_grad_()
    mask = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1]]).to(dtype)
    params = distribution.normalize(DistParams(logits=logits), mask)
    other = distribution.normalize(DistParams(logits=torch.zeros(3, 4)), mask)
    probs = (logits.detach().exp() * mask).unflatten(-1, distribution.params_shape)
    probs = probs / probs.sum(-1, keepdim=True)
    torch.testing.assert_close(params.detach().exp(), probs, **CLOSE)
    for seed in range(20):
        action = distribution.sample(params, torch.Generator().manual_seed(seed))
        assert (probs.gather(-1, action.unsqueeze(-1)) > 0).all()
    assert (probs.gather(-1, distribution.mode(params).unsqueeze(-1)) > 0).all()
    entropy = torch.special.entr(probs).sum(-1)
    kl = -entropy - (probs * other.clamp(min=-1e9)).sum(-1)
    if probs.ndim == 3:
        entropy, kl = entropy.sum(-1), kl.sum(-1)
    found = [distribution.entropy(params), distribution.kl(params, other)]
    torch.testing.assert_close([each.detach() for each in found], [entropy, kl], **CLOSE)
    (sum(found) + distribution.log_prob(params, action)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[mask == 0] == 0).all()


def test_probabilities_are_divided_again_among_allowed_actions() -> None:
    probs, mask = torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([[True, False, True]])
    params = Categorical(3).normalize(DistParams(probs=probs), mask)
    torch.testing.assert_close(params.exp(), torch.tensor([[2 / 7, 0, 5 / 7]]), **CLOSE)


def test_a_mask_without_any_action_is_refused_by_its_row() -> None:
    params, mask = DistParams(logits=torch.zeros(3, 4)), torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2:] = False
    Categorical(4).normalize(params, mask)
    with pytest.raises(ValueError, match=r"action_mask: row \[1, 1\] allows no action"):
        MultiCategorical([2, 2]).normalize(params, mask)
    mask[1] = False
    with pytest.raises(ValueError, match="action_mask: row 1 allows no action"):
        Categorical(4).normalize(params, mask)


@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, MultiCategorical([1, 3])])
def test_a_mask_of_another_shape_is_not_spread(distribution: Distribution) -> None:
    for shape in ((1, 4), (3, 1), (4,), (3, 5)):
        with pytest.raises(ValueError, match="action_mask: shape"):
            distribution.normalize(DistParams(logits=torch.zeros(3, 4)), torch.ones(shape).bool())


def test_parameters_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dist_params: shape \(3, 4\), expected \(\.\.\., 5\)"):
        MultiCategorical([2, 3]).normalize(DistParams(logits=torch.zeros(3, 4)))
    for nvec in ([], [2, 0]):
        with pytest.raises(ValueError, match="nvec: got"):
            MultiCategorical(nvec)
    for wrong in ([2.7, 3], np.array([[2, 3], [2, 3]])):
        with pytest.raises(TypeError, match=r"nvec: got .*expected integers"):
            MultiCategorical(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_16_bits_have_log_probabilities_of_32(dtype: torch.dtype) -> None:
    logits = random_logits([2, 3]).to(dtype)
    for params in (DistParams(logits=logits), DistParams(probs=logits.softmax(-1))):
        for distribution in (Categorical(5), MultiCategorical([2, 3])):
            numbers = (params.probs if params.logits is None else params.logits).float()
            widened = DistParams(**{"logits" if params.probs is None else "probs": numbers})
            expected = distribution.normalize(widened)
            assert expected.dtype == torch.float32
            torch.testing.assert_close(distribution.normalize(params), expected, rtol=0, atol=0)


def test_actions_begin_where_the_space_does() -> None:
    params = torch.zeros(1, 2, 3)
    multi = MultiCategorical([2, 3])
    space = spaces.MultiDiscrete([2, 3], start=[5, -1])
    offset = multi.map_actions(space, params)
    assert offset is not None
    counted = offset.to_space(torch.tensor([[0, 0], [1, 2]]))
    assert counted.tolist() == [[5, -1], [6, 1]]
    assert offset.from_space(counted.to(torch.int8)).tolist() == [[0, 0], [1, 2]]
    assert offset.from_space(counted.to(torch.int8)).dtype == torch.int64
    assert MultiCategorical([2, 2]).map_actions(spaces.MultiBinary(2), params) is None
    wrong = [spaces.Discrete(2), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)]
    for other in [*wrong, spaces.MultiBinary([2, 2])]:
        with pytest.raises((TypeError, ValueError), match="action space: got"):
            multi.map_actions(other, params)
