"""QPgAgent: a policy over continuous actions, which learns by critics' values of its actions."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from parllel.torch.agents.agent import Agent, in_inference_mode
from parllel.torch.agents.modes import in_mode
from parllel.torch.agents.one_space import check_same_space
from parllel.torch.distributions import ActionMap, ReparameterizedDistribution


class QPgAgent(Agent[Any]):
    """Draw actions from a distribution whose parameters a model gives, beside critics of actions.

    Critics see, and the distribution gives, own actions; environments and the sample tree have
    those of the space, to whose bounds own actions are scaled (`Distribution.map_actions`). The
    agent converts between both, and nothing else does.

    Args:
        model: a `torch.nn.Module` that returns parameters of the distribution for rows of
            observations, and is made of three parts, as `SoftActorCritic` is. Its method `encode`
            turns rows of observations into features [B, ...]; its part `policy` turns features
            into those parameters, and its part `critic` features and own actions [B, k] into
            values [n, B] of n critics.
        distribution: the distribution of actions, as `SquashedGaussian`.
        example_obs: rows [B, ...] of observations, on which the model is tried once.
        generator: source of randomness of the actions, and of those that are learned from; torch's
            own by default.

    Raises:
        TypeError: the model lacks a part, or the distribution has no gradients by its parameters
            (`sample_with_log_prob`).
        ValueError: the model's outputs have a wrong shape, or its parameters are on another device
            than the observations.

    Source: Haarnoja et al. 2018, arXiv:1812.05905; the name: Stooke and Abbeel 2019,
        arXiv:1909.01500, section 1.

    Example:
        >>> import numpy as np
        >>> from parllel.torch.distributions import SquashedGaussian
        >>> from parllel.torch.models import SoftActorCritic
        >>> model = SoftActorCritic(3, n_actions=1)
        >>> agent = QPgAgent(model, SquashedGaussian(1), torch.zeros(1, 3))
        >>> agent.bind_actions(spaces.Box(10, 20, (1,)))  # a sampler does it
        >>> action, agent_info = agent.step(np.zeros((4, 3), np.float32), deterministic=True)
        >>> action.round().flatten().tolist(), agent_info
        ([15.0, 15.0, 15.0, 15.0], {})
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        distribution: ReparameterizedDistribution,
        example_obs: object,
        generator: torch.Generator | None = None,
    ) -> None:
        parts = ("encode", "policy", "critic")
        if missing := [name for name in parts if not hasattr(model, name)]:
            raise TypeError(
                f"model: {type(model).__name__} has no {' and no '.join(missing)}, expected a"
                " torch.nn.Module as torch.models.SoftActorCritic"
            )
        if not hasattr(distribution, "sample_with_log_prob"):
            raise TypeError(
                f"distribution: {type(distribution).__name__} has no sample_with_log_prob, expected"
                " one whose actions have gradients, as SquashedGaussian"
            )
        super().__init__(model, generator)
        self.distribution = distribution
        self._space: spaces.Space[Any] | None = None
        self._action_map: ActionMap | None = None
        outputs, n_rows = self._try_model(example_obs)
        self._example_params = distribution.normalize(outputs)
        self._check_shapes(example_obs, n_rows)

    def bind_actions(self, space: spaces.Space[Any]) -> None:
        """Learn which actions environments take: a sampler calls it when it is made.

        Raises:
            TypeError, ValueError: the distribution has other actions than the space
                (`Distribution.map_actions`); or the agent acts in another space already: one agent
                has one scale.
        """
        check_same_space(self._space, space)
        self._action_map = self.distribution.map_actions(space, self._example_params)
        self._space = space

    @in_inference_mode
    def step(
        self, observation: object, *, deterministic: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose an action for each row.

        Args:
            observation: rows [B, ...] of observations.
            deterministic: take the distribution's mode instead of drawing an action.

        Returns:
            The actions of the space, float [B, k], and an empty dictionary.
        """
        params = self.distribution.normalize(self._outputs(observation))
        if deterministic:
            action = self.distribution.mode(params)
        else:
            action = self.distribution.sample(params, self._generator)
        return action if self._action_map is None else self._action_map.to_space(action), {}

    def encode(self, observation: object) -> Tensor:
        """Return features of rows of observations, with gradients by the encoder's parameters."""
        features: Tensor = self.model.encode(self._rows(observation))  # type: ignore[operator]
        return features

    def own_action(self, action: Tensor) -> Tensor:
        """Return own actions [N, k] for those of the space, as the sample tree has them.

        Raises:
            RuntimeError: the space is not known: actions would be taken for own ones.
        """
        if self._space is None:
            raise RuntimeError(
                "own_action: the agent knows no space of actions; make a sampler with it, or call"
                " bind_actions(space) of the environments whose actions these are"
            )
        return action if self._action_map is None else self._action_map.from_space(action)

    def draw_action(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return own actions [N, k] and their log-probabilities [N], both with gradients."""
        params = self.distribution.normalize(self.model.policy(features))  # type: ignore[operator]
        return self.distribution.sample_with_log_prob(params, self._generator)

    def action_values(
        self, features: Tensor, action: Tensor, *, critic: nn.Module | None = None
    ) -> Tensor:
        """Return what each of n critics estimates of own actions, float32 [n, N].

        Args:
            features: those of the observations (`encode`).
            action: own actions [N, k].
            critic: a copy of the model's critic, such as a target network; that one by default.
        """
        values: Tensor = (self.model.critic if critic is None else critic)(features, action)  # type: ignore[operator]
        return values

    @torch.no_grad()
    def _check_shapes(self, example_obs: object, n_rows: int) -> None:
        params_shape = self.distribution.params_shape
        if tuple(self._example_params.shape) != (n_rows, *params_shape):
            raise ValueError(
                f"model: it gives parameters {tuple(self._example_params.shape)}, expected"
                f" {(n_rows, *params_shape)} for {n_rows} rows of observations"
            )
        with in_mode(self.model, training=False):
            action = self.distribution.mode(self._example_params)
            values = self.action_values(self.encode(example_obs), action)
        if values.ndim != 2 or values.shape[1] != n_rows:
            raise ValueError(
                f"model: its critic gives {tuple(values.shape)}, expected (n, {n_rows}), a row for"
                " each critic"
            )
