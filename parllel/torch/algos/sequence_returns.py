"""Returns of several steps within windows of steps, and values that are squashed."""

from __future__ import annotations

import torch
from torch import Tensor

_SLOPE = 1e-3  # epsilon of the source: it keeps squashed values apart where they are large


def n_step_returns(
    reward: Tensor,
    terminated: Tensor,
    mask: Tensor,
    value: Tensor,
    *,
    n_steps: int,
    discount: float,
) -> Tensor:
    """Return n-step returns within windows.

    R_1[t] = r[t] + g * V[t+1]
    R_k[t] = r[t] + g * R_{k-1}[t+1] where step t + 1 can be learned from, else R_1[t]

    for k = 2 ... n, with discount g and nothing behind a step that terminated its episode. So a
    return ends with the value of the observation after n steps, of the first one whose step can't
    be learned from, or of the one behind the window.

        >>> ones, no = torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.bool)
        >>> value = torch.tensor([[0.0], [0], [16], [0]])
        >>> n_step_returns(ones, no, ~no, value, n_steps=2, discount=0.5).flatten()
        tensor([5.5000, 1.5000, 1.0000])

    Args:
        reward: float32 [K, N].
        terminated: bool [K, N].
        mask: bool [K, N], the steps that can be learned from. What others hold counts for nothing.
        value: float32 [K + 1, N], of the observation of each row.
        n_steps: 1 or more.
        discount: in [0, 1].

    Returns:
        float32 [K, N]; of steps that can't be learned from, of no meaning.

    Source: Kapturowski et al. 2019, "Recurrent experience replay in distributed reinforcement
        learning", section 2.3; n-step returns as in Watkins 1989, "Learning from delayed rewards".
    """
    following = value[1:]
    for step in range(n_steps):
        returns = reward + discount * torch.where(terminated, 0, following)
        if step < n_steps - 1:
            goes_on = torch.where(mask[1:], returns[1:], value[1:-1])
            following = torch.cat([goes_on, value[-1:]])
    return returns


def squash(value: Tensor) -> Tensor:
    """Return h(x) = sign(x) * (sqrt(|x| + 1) - 1) + 0.001 * x, for targets of any size.

    >>> squash(torch.tensor([0.0, 3.0, -99.0]))
    tensor([ 0.0000,  1.0030, -9.0990])

    Source: Pohlen et al. 2018, arXiv:1805.11593, proposition A.2.
    """
    return value.sign() * ((value.abs() + 1).sqrt() - 1) + _SLOPE * value


def unsquash(value: Tensor) -> Tensor:
    """Return the number whose `squash` a value is.

    >>> unsquash(squash(torch.tensor([0.0, 3.0, -99.0])))
    tensor([  0.,   3., -99.])

    Source: as for `squash`. Its root r = (sqrt(1 + 4 e (|x| + 1 + e)) - 1) / (2 e) is written
        without the difference of nearly equal numbers.
    Error: of float32, at most 2e-6 * (1 + |x|) (`test_values_are_squashed_and_back`).
    """
    inner = value.abs() + 1 + _SLOPE
    root = 2 * inner / ((1 + 4 * _SLOPE * inner).sqrt() + 1)
    return value.sign() * (root - 1) * (root + 1)
