"""MultiCategorical: several choices side by side, each independent of the others."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from parllel.torch.distributions.action_map import ActionMap, offset
from parllel.torch.distributions.categorical import Categorical, DistParams, logits_of, masked


class MultiCategorical:
    """A distribution over k integers, the i-th of which lies in 0 to nvec[i] - 1.

    It is that of actions of `MultiDiscrete(nvec)`, and with `nvec = [2] * n` of `MultiBinary(n)`.
    A model gives the parameters of all choices in one tensor [..., sum(nvec)], one choice after
    the other. Normalized, they are log-probabilities [..., k, max(nvec)], with -inf behind the
    choices that have fewer than the most.

    Args:
        nvec: number of actions of each choice.

    Raises:
        TypeError: nvec has something else than integers, as a matrix has.
        ValueError: there is no choice, or one has less than 1 action.

    Example:
        >>> pair = MultiCategorical([2, 3])
        >>> log_probs = pair.normalize(DistParams(logits=torch.tensor([[0.0, 9, 0, 0, 9]])))
        >>> pair.mode(log_probs)
        tensor([[1, 2]])
        >>> pair.log_prob(log_probs, torch.tensor([[1, 2]])).exp()
        tensor([0.9996])
    """

    def __init__(self, nvec: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        try:
            counts = [operator.index(count) for count in nvec]
        except TypeError as error:
            raise TypeError(
                f"nvec: got {np.asarray(nvec).tolist()}, expected integers, the number of actions"
                " of each choice"
            ) from error
        if not counts or min(counts) < 1:
            raise ValueError(f"nvec: got {counts}, expected a list of numbers of 1 or more")
        self.nvec = counts
        self._choice = Categorical(max(counts))
        places = np.full((len(counts), max(counts)), sum(counts))  # sum(counts): a pad behind all
        for choice, (start, count) in enumerate(zip(np.cumsum([0, *counts]), counts, strict=False)):
            places[choice, :count] = np.arange(start, start + count)
        self._places = torch.from_numpy(places)

    @property
    def params_shape(self) -> tuple[int, int]:
        """The shape of one row of log-probabilities, (k, max(nvec))."""
        return len(self.nvec), self._choice.dim

    def normalize(self, dist_params: DistParams, mask: Tensor | None = None) -> Tensor:
        """Return normalized log-probabilities, float32 [..., k, max(nvec)].

        Args:
            dist_params: parameters [..., sum(nvec)].
            mask: bool or integers [..., sum(nvec)]; an action whose entry is 0 has a probability
                of 0. Each choice needs an action that is allowed, as `Categorical.normalize` says.

        Raises:
            ValueError: parameters or mask have another size; or, on the host, a choice of a row
                has no action that is allowed.
        """
        logits = self._apart(logits_of(dist_params), "dist_params", pad=-torch.inf)
        if mask is not None:
            logits = masked(logits, self._apart(mask, "action_mask", pad=0))
        return logits.log_softmax(dim=-1)

    def sample(self, log_probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw an action for each row, int64 [..., k]."""
        return self._choice.sample(log_probs, generator)

    def mode(self, log_probs: Tensor) -> Tensor:
        """Return the most probable action of each row, int64 [..., k]."""
        return self._choice.mode(log_probs)

    def log_prob(self, log_probs: Tensor, action: Tensor) -> Tensor:
        """Return the log-probability of one action (int64 [..., k]) in each row, float32 [...]."""
        return self._choice.log_prob(log_probs, action).sum(dim=-1)

    def entropy(self, log_probs: Tensor) -> Tensor:
        """Return the entropy of each row in nats, float32 [...]: the sum of that of all choices."""
        return self._choice.entropy(log_probs).sum(dim=-1)

    def kl(self, log_probs: Tensor, other: Tensor) -> Tensor:
        """Return the KL divergence of each row in nats, float32 [...]: the sum over all choices."""
        return self._choice.kl(log_probs, other).sum(dim=-1)

    def map_actions(self, space: spaces.Space[Any], log_probs: Tensor) -> ActionMap | None:
        """Return the offset by the `start` of a MultiDiscrete space; None where it is 0.

        Raises:
            TypeError: the space is another one.
            ValueError: it has other numbers of actions, or its actions are no vectors.
        """
        start: int | NDArray[np.int64] = 0
        if isinstance(space, spaces.MultiDiscrete):
            nvec, start = np.asarray(space.nvec), np.asarray(space.start, np.int64)
        elif isinstance(space, spaces.MultiBinary):
            nvec = np.full(space.shape, 2)
        else:
            raise TypeError(
                f"action space: got {space}, expected MultiDiscrete or MultiBinary; use another"
                " distribution"
            )
        if nvec.tolist() != self.nvec:  # matrices are never equal
            way_out = (
                f"use MultiCategorical({nvec.tolist()})"
                if nvec.ndim == 1
                else "flatten the environment's actions with gymnasium.wrappers.TransformAction"
            )
            raise ValueError(
                f"action space: got {space}, expected a vector of choices among {self.nvec}"
                f" actions, as the distribution has; {way_out}"
            )
        return offset(start, log_probs.device)

    def _apart(self, flat: Tensor, name: str, *, pad: float) -> Tensor:
        """Return [..., sum(nvec)] as [..., k, max(nvec)], padded where a choice has fewer."""
        if flat.shape[-1] != sum(self.nvec):
            raise ValueError(
                f"{name}: shape {tuple(flat.shape)}, expected (..., {sum(self.nvec)}), the actions"
                f" of all choices {self.nvec}"
            )
        if min(self.nvec) == max(self.nvec):
            return flat.reshape(*flat.shape[:-1], *self.params_shape)
        if self._places.device != flat.device:  # moved once
            self._places = self._places.to(flat.device)
        return torch.nn.functional.pad(flat, (0, 1), value=pad)[..., self._places]
