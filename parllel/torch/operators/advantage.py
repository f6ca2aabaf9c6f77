"""estimate_advantage: generalized advantage estimation as an operator of torch."""

from __future__ import annotations

from torch import Tensor

from parllel.ops import advantage
from parllel.torch.operators.library import as_array, define


def _estimate(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    final_value: Tensor,
    discount: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    inputs = [as_array(each) for each in (reward, value, terminated, truncated, final_value)]
    outputs = _empty(reward)
    advantage.estimate_advantage(
        *inputs,
        discount=discount,
        gae_lambda=gae_lambda,
        out_advantage=as_array(outputs[0]),
        out_return=as_array(outputs[1]),
    )
    return outputs


def _empty(reward: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    first, second = (reward.new_empty(reward.shape) for _ in range(2))
    return first, second


_OPERATOR = define(
    "estimate_advantage(Tensor reward, Tensor value, Tensor terminated, Tensor truncated,"
    " Tensor final_value, float discount, float gae_lambda) -> (Tensor, Tensor)",
    _estimate,
    _empty,
)


def estimate_advantage(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    final_value: Tensor,
    *,
    discount: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, in new memory; `torch.compile` leaves the call whole.

    They are those of `parllel.transforms.EstimateAdvantage`, and have no gradient. On a GPU it is
    one launch in torch's current stream, or three of 256 steps or more in few environments, and the
    host does not wait.

    >>> import torch
    >>> ones, no = torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.bool)
    >>> values = torch.zeros(4, 1), no, no, torch.zeros(3, 1)
    >>> estimate_advantage(ones, *values, discount=0.5, gae_lambda=1.0)[1].flatten()
    tensor([1.7500, 1.5000, 1.0000])

    Args:
        reward: float32 [T, B]. Tensors that are not contiguous are copied.
        value: float32 [T + 1, B].
        terminated, truncated: bool [T, B].
        final_value: float32 [T, B].
        discount, gae_lambda: float in [0, 1].

    Returns:
        Two tensors, float32 [T, B].

    Raises:
        TypeError, ValueError: as for `parllel.ops.advantage.estimate_advantage`.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    found: tuple[Tensor, Tensor] = _OPERATOR(
        reward, value, terminated, truncated, final_value, discount, gae_lambda
    )
    return found
