"""Categorical: a choice among `dim` actions, without the validation cost of torch.distributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DistParams:
    """The parameters of a distribution of actions, as a model gives them: one of the two.

    Args:
        probs: float32 [..., dim], probabilities; each row sums to 1.
        logits: float32 [..., dim], log-probabilities up to a constant for each row. They are more
            exact than `probs` where an action is improbable.

    Raises:
        TypeError: both are given, or none.

    Example:
        >>> DistParams(logits=torch.zeros(3)).probs is None
        True
    """

    probs: Tensor | None = None
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.probs is None) == (self.logits is None):
            raise TypeError("DistParams: got both or none, expected either probs or logits")


class Categorical:
    """A distribution over the integers 0 to dim - 1.

    Args:
        dim: number of actions.

    Raises:
        ValueError: dim is less than 1.

    Example:
        >>> categorical = Categorical(dim=2)
        >>> log_probs = categorical.log_probs(DistParams(probs=torch.tensor([[0.25, 0.75]])))
        >>> categorical.mode(log_probs)
        tensor([1])
        >>> categorical.log_prob(log_probs, torch.tensor([0])).exp()
        tensor([0.2500])
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim: got {dim}, expected 1 or more")
        self.dim = dim

    def log_probs(self, dist_params: DistParams) -> Tensor:
        """Return the normalized log-probabilities of all actions, float32 [..., dim]."""
        if dist_params.logits is not None:
            return dist_params.logits.log_softmax(dim=-1)
        assert dist_params.probs is not None
        # An action of probability 0 keeps a finite logarithm, and so a finite gradient.
        smallest = torch.finfo(dist_params.probs.dtype).tiny
        return dist_params.probs.clamp(min=smallest).log()

    def sample(self, log_probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw an action for each row, int64 [...].

        The Gumbel-max trick, as a race of exponential variables: argmax of log p - log E.
        Source: Maddison et al. 2014, arXiv:1411.0030, section 2.

        Args:
            log_probs: float32 [..., dim], as the method `log_probs` returns them.
            generator: source of randomness; torch's own by default.
        """
        noise = torch.empty_like(log_probs).exponential_(generator=generator)
        return (log_probs - noise.log_()).argmax(dim=-1)

    def mode(self, log_probs: Tensor) -> Tensor:
        """Return the most probable action of each row, int64 [...]."""
        return log_probs.argmax(dim=-1)

    def log_prob(self, log_probs: Tensor, action: Tensor) -> Tensor:
        """Return the log-probability of one action (int64) in each row, float32 [...]."""
        return log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, log_probs: Tensor) -> Tensor:
        """Return the entropy of each row in nats, float32 [...]."""
        # An action of probability 0 counts nothing: 0 * log 0 = 0.
        finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
        return -(log_probs.exp() * finite).sum(dim=-1)
