"""Categorical: a choice among `dim` actions, without the validation cost of torch.distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from parllel.torch.distributions.action_map import ActionMap, offset


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

    Its normalized parameters are log-probabilities.

    Args:
        dim: number of actions.

    Raises:
        ValueError: dim is less than 1.

    Example:
        >>> categorical = Categorical(dim=2)
        >>> log_probs = categorical.normalize(DistParams(probs=torch.tensor([[0.25, 0.75]])))
        >>> categorical.mode(log_probs)
        tensor([1])
        >>> categorical.log_prob(log_probs, torch.tensor([0])).exp()
        tensor([0.2500])
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim: got {dim}, expected 1 or more")
        self.dim = dim

    @property
    def params_shape(self) -> tuple[int]:
        """The shape of one row of log-probabilities, (dim,)."""
        return (self.dim,)

    def normalize(self, dist_params: DistParams, mask: Tensor | None = None) -> Tensor:
        """Return the normalized log-probabilities of all actions, float32 [..., dim].

        Args:
            dist_params: parameters [..., dim].
            mask: bool or integers [..., dim]; an action whose entry is 0 has a probability of 0.

        Raises:
            ValueError: the mask has another shape; or, on the host, a row of it allows nothing. On
                a device such a row is not looked for: its log-probabilities become NaN, its action
                is the first one, and the losses of that batch are NaN.
        """
        logits = logits_of(dist_params)
        if mask is not None:
            return masked(logits, mask).log_softmax(dim=-1)
        return logits if dist_params.logits is None else logits.log_softmax(dim=-1)

    def sample(self, log_probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw an action for each row, int64 [...].

        The Gumbel-max trick, as a race of exponential variables: argmin of log E - log p.
        Source: Maddison et al. 2014, arXiv:1411.0030, section 2.

        Args:
            log_probs: float32 [..., dim], as `normalize` returns them.
            generator: source of randomness; torch's own by default.
        """
        race = torch.empty_like(log_probs).exponential_(generator=generator)
        return race.log_().sub_(log_probs).argmin(-1)

    def mode(self, log_probs: Tensor) -> Tensor:
        """Return the most probable action of each row, int64 [...]."""
        return log_probs.argmax(-1)

    def log_prob(self, log_probs: Tensor, action: Tensor) -> Tensor:
        """Return the log-probability of one action (int64) in each row, float32 [...]."""
        return log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, log_probs: Tensor) -> Tensor:
        """Return the entropy of each row in nats, float32 [...]."""
        # An action of probability 0 counts nothing: 0 * log 0 = 0.
        finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
        return -(log_probs.exp() * finite).sum(dim=-1)

    def kl(self, log_probs: Tensor, other: Tensor) -> Tensor:
        """Return sum_a p[a] * (log p[a] - log q[a]) for each row in nats, float32 [...].

        It is infinite where `other` never takes an action that `log_probs` takes.
        """
        probs = log_probs.exp()
        # 0 * log(0 / q) = 0, and so is its gradient.
        return (probs * torch.where(probs > 0, log_probs - other, 0)).sum(dim=-1)

    def map_actions(self, space: spaces.Space[Any], log_probs: Tensor) -> ActionMap | None:
        """Return the offset by the `start` of a Discrete space; None where it is 0.

        The distribution may have more actions than the space where `log_probs` give the last ones
        a probability of 0.

        Raises:
            TypeError: the space is not Discrete.
            ValueError: it has another number of actions than the distribution.
        """
        if not isinstance(space, spaces.Discrete):
            raise TypeError(f"action space: got {space}, expected Discrete; use another agent")
        # A probability of 0 was raised to the smallest one by `logits_of`.
        tiny = 2 * torch.finfo(log_probs.dtype).tiny
        is_possible = (log_probs.exp() > tiny).reshape(-1, self.dim).any(dim=0)
        n_possible = int(is_possible.nonzero().amax()) + 1 if is_possible.any() else 0
        if not n_possible <= space.n <= self.dim:
            raise ValueError(
                f"action space: got {space}, expected {self.dim} actions, as the"
                f" distribution has; use Categorical(dim={space.n}), or a model that gives actions"
                f" beyond {space.n} logits of -inf"
            )
        return offset(int(space.start), log_probs.device)


def logits_of(dist_params: DistParams) -> Tensor:
    """Return the logits of a model, or the logarithms of its probabilities; never in 16 bits."""
    if dist_params.logits is not None:
        return _widened(dist_params.logits)
    assert dist_params.probs is not None
    probs = _widened(dist_params.probs)
    # An action of probability 0 keeps a finite logarithm, and so a finite gradient.
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def _widened(numbers: Tensor) -> Tensor:
    """Return floats of 16 bits as float32: a ratio of probabilities needs more digits than these.

    The log-probability of an action, as -1.07, is rounded by up to 0.004 in bfloat16.
    """
    return numbers.float() if numbers.dtype.itemsize < 4 else numbers


def masked(logits: Tensor, mask: Tensor) -> Tensor:
    """Return logits, or values of actions, that are -inf where an action is not allowed.

    Args:
        logits: float [..., dim].
        mask: bool or integers [..., dim], 0 for actions that are not allowed.

    Raises:
        ValueError: the mask has another shape; or, on the host, a row allows no action.
    """
    if mask.shape != logits.shape:
        raise ValueError(
            f"action_mask: shape {tuple(mask.shape)}, expected {tuple(logits.shape)}, an entry for"
            " each action of each row"
        )
    if mask.device.type == "cpu" and not (allowed := (mask != 0).any(dim=-1)).all():
        row = allowed.logical_not().nonzero()[0].tolist()
        raise ValueError(
            f"action_mask: row {row[0] if len(row) == 1 else row} allows no action, expected one or"
            " more; an episode without a choice has to end"
        )
    return logits.masked_fill(mask == 0, -torch.inf)
