"""PreviousInputs: the action and the reward of the step before, as inputs of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


class PreviousInputs:
    """Make inputs of the previous action and of the reward that followed it.

    A choice among n actions becomes n numbers, all 0 but a 1 at the action; several choices lie
    side by side; numbers of a Box stay as the agent's distribution has them. The reward is one
    number behind them. In the first step of an episode there is no previous action, and all inputs
    are 0.

    Args:
        space: the space of a single environment's actions: Discrete, MultiDiscrete, MultiBinary or
            a Box.

    Attributes:
        n_features: number of inputs.

    Raises:
        TypeError: the space is another one.

    Source: Mnih et al. 2016, arXiv:1602.01783, section 5.2 (the previous action and reward);
        Kapturowski et al. 2019, "Recurrent experience replay in distributed reinforcement
        learning", section 2.3.

    Example:
        >>> previous = PreviousInputs(spaces.Discrete(3))
        >>> previous.n_features
        4
        >>> previous.encode(torch.tensor([2]), torch.tensor([0.5]))
        tensor([[0.0000, 0.0000, 1.0000, 0.5000]])
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._counts: list[int] | None = None  # of the actions of each choice; None: numbers
        if isinstance(space, spaces.Discrete):
            self._counts = [int(space.n)]
        elif isinstance(space, spaces.MultiDiscrete):
            self._counts = [int(count) for count in np.asarray(space.nvec).ravel()]
        elif isinstance(space, spaces.MultiBinary):
            self._counts = [2] * int(np.prod(space.shape))
        elif not isinstance(space, spaces.Box):
            raise TypeError(
                f"action space: got {space}, expected Discrete, MultiDiscrete, MultiBinary or Box"
            )
        self._shape: tuple[int, ...] = tuple(space.shape or ())
        counts = self._counts
        n_inputs = int(np.prod(self._shape)) if counts is None else sum(counts)
        self.n_features = n_inputs + 1
        # Input i is 1 where choice `_choice[i]` took action `_value[i]`.
        counts = counts or []
        self._choice = torch.repeat_interleave(
            torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64)
        )
        self._value = torch.cat([torch.arange(count) for count in counts] or [torch.empty(0)])

    def check_space(self, space: spaces.Space[Any]) -> None:
        """Refuse another space of actions than the one that inputs are made for.

        The bounds of a Box, and the integers that choices begin at, are the agent's distribution's.

        Raises:
            TypeError: it is none that inputs can be made of.
            ValueError: it has other numbers of choices or of actions, or another shape.
        """
        other = PreviousInputs(space)
        if (other._counts, other._shape) != (self._counts, self._shape):
            own = "numbers" if self._counts is None else f"choices among {self._counts} actions"
            raise ValueError(
                f"action space: got {space}, expected {own} of shape {self._shape}, of which the"
                " previous inputs are made; make them with PreviousInputs(space) of this space"
            )

    def first(self, n_envs: int, device: torch.device) -> Tensor:
        """Return the inputs of the first step of an episode, zeros [n_envs, n_features]."""
        return torch.zeros(n_envs, self.n_features, device=device)

    def encode(self, action: Tensor, reward: Tensor) -> Tensor:
        """Return inputs, float32 [..., n_features].

        Args:
            action: [..., *shape of the space], as the agent's distribution has it: integers that
                are counted from 0, or numbers.
            reward: [...].

        Raises:
            ValueError: the two do not have the same leading dimensions, or actions another shape.
        """
        if tuple(action.shape) != (*reward.shape, *self._shape):
            raise ValueError(
                f"previous: action {tuple(action.shape)} and reward {tuple(reward.shape)}, expected"
                f" actions of shape {self._shape} for each reward"
            )
        rows = action.reshape(*reward.shape, -1)
        if self._counts is None:
            inputs = rows.float()
        else:
            if self._choice.device != action.device:
                self._choice = self._choice.to(action.device)
                self._value = self._value.to(action.device)
            inputs = (rows.index_select(-1, self._choice) == self._value).float()
        return torch.cat([inputs, reward.float().unsqueeze(-1)], dim=-1)
