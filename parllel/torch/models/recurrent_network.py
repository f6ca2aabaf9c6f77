"""RecurrentNetwork: an encoder, a core with a memory and a head, for recurrent agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parllel.arrays import Jagged
from parllel.torch.models.encoding import Encoding
from parllel.torch.models.recurrent_core import RecurrentCore, State
from parllel.tree import dict_map


class RecurrentNetwork(Encoding):
    """A network with a memory: each row is encoded, the core goes from step to step, a head ends.

        encoder = Mlp(4)
        core = Lstm(encoder.n_features, 64)
        model = RecurrentNetwork(encoder, core, ActorCritic(nn.Identity(), 2, n_features=64))

    Encoder and head run over all rows of a sequence at once; the core alone takes turns. Any model
    of features is a head: an `ActorCritic` or a `GaussianActorCritic` for `RecurrentPgAgent`, a
    `QNetwork` for `RecurrentQAgent`, each over `nn.Identity()`.

    Where agents are made with `previous=`, the core gets the previous action and the reward for it
    behind the encoder's features, `PreviousInputs.n_features` of them.

    Args:
        encoder: turns rows into features [N, n_features], as `NatureCnn` or any `nn.Module`.
        core: `Lstm` or `Gru`.
        head: turns the core's features [N, core.n_features] into what the agent takes.
        n_features: number of the encoder's features; by default what the encoder calls so.
        leaf: name of the leaf of an observation that the encoder takes, where observations are
            trees, as those with an `action_mask` are.
        autocast: dtype in which the encoder computes, `torch.bfloat16` as a rule; None for that of
            its parameters. Core and head compute in float32 in any case.

    Raises:
        TypeError: the encoder does not say how many features it has.

    Example:
        >>> from parllel.torch.models import Gru, Mlp, QNetwork
        >>> head = QNetwork(nn.Identity(), n_actions=3, n_features=16)
        >>> model = RecurrentNetwork(Mlp(4, [8]), Gru(8, 16), head)
        >>> values, state = model(torch.zeros(5, 2, 4), model.first_state(2))
        >>> values.shape  # a row for each step and environment, time-major
        torch.Size([10, 3])
    """

    def __init__(
        self,
        encoder: nn.Module,
        core: RecurrentCore,
        head: nn.Module,
        *,
        n_features: int | None = None,
        leaf: str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(encoder, n_features, leaf=leaf, autocast=autocast)
        self.core = core
        self.head = head

    def first_state(self, n_envs: int) -> dict[str, Tensor]:
        """Return the state of n environments at the beginning of an episode."""
        return self.core.first_state(n_envs)

    def forward(
        self,
        observation: Tensor | Mapping[str, Any],
        state: State,
        is_first: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run over sequences.

        Args:
            observation: [T, B, ...], a tensor or a tree of tensors.
            state: the state before the first step, as `first_state` has it.
            is_first: bool [T, B], whether an episode begins with the step; None for nowhere.
            previous: float32 [T, B, k], the previous action and reward as inputs; None for none.

        Returns:
            The head's outputs for T * B rows, those of the first step before those of the second;
            and the state after the last step.

        Raises:
            ValueError: the core has another number of inputs than it would get.
        """
        first: Any = observation
        while isinstance(first, Mapping):
            first = next(iter(first.values()))
        n_steps, n_envs = (first.batch_shape if isinstance(first, Jagged) else first.shape)[:2]
        features = self.encode(dict_map(_flatten, observation)).view(n_steps, n_envs, -1)
        if previous is not None:
            features = torch.cat([features, previous], dim=2)
        if features.shape[2] != self.core.n_inputs:
            n_previous = 0 if previous is None else previous.shape[2]
            raise ValueError(
                f"core: got n_inputs = {self.core.n_inputs}, expected {features.shape[2]}:"
                f" {features.shape[2] - n_previous} features of the encoder, and {n_previous} of"
                " the previous action and reward (the agent's previous=)"
            )
        features, after = self.core(features, state, is_first)
        return self.head(features.flatten(0, 1)), after


def _flatten(leaf: Tensor) -> Tensor:
    return leaf.flatten(0, 1)
