"""PgAgent: a policy-gradient agent, whose model gives a distribution of actions and a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from parllel.torch.agents.action_mask import find_mask, mask_for
from parllel.torch.agents.agent import Agent, in_inference_mode
from parllel.torch.agents.modes import in_mode
from parllel.torch.agents.one_space import check_same_space
from parllel.torch.distributions import ActionMap, Distribution


class ModelOutputs(NamedTuple):
    """The outputs of a model for rows of observations.

    Args:
        dist_params: parameters of the distribution of actions, as the distribution takes them:
            `DistParams` [..., dim] for a `Categorical`.
        value: float32 [...], estimate of the discounted return from the observation on.

    Example:
        >>> from parllel.torch.distributions import DistParams
        >>> outputs = ModelOutputs(DistParams(logits=torch.zeros(4, 2)), value=torch.zeros(4))
        >>> outputs.value.shape
        torch.Size([4])
    """

    dist_params: Any  # Any: each distribution names what it takes
    value: Tensor


class Evaluation(NamedTuple):
    """The three results that a learning step needs for each row, float32 [...] with gradients.

    Args:
        log_prob: log-probability of the action that was taken.
        entropy: entropy of the distribution of actions in nats.
        value: estimate of the discounted return from the observation on.

    Example:
        >>> Evaluation(torch.tensor([-0.7]), torch.tensor([0.7]), torch.tensor([1.0])).entropy
        tensor([0.7000])
    """

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


class PgAgent(Agent[ModelOutputs]):
    """Draw actions from a distribution whose parameters a model gives, beside a value.

    Observations may be Arrays, NumPy arrays or tensors, or trees of them; on the host they are
    read without a copy. The model sees them with the dtype that they are stored in.

    Where the observation is a tree with a leaf `action_mask`, bool or integers [B, n], the agent
    takes and evaluates only actions whose entry is not 0. The model is given the whole tree.
    `cages.MaskInObservation` makes such observations of an environment whose info has the mask.

    Args:
        model: takes rows of observations and returns `ModelOutputs`.
        distribution: the distribution of actions.
        example_obs: rows [B, ...] of observations, on which the model is tried once.
        generator: source of randomness of the actions; torch's own by default.

    Raises:
        TypeError: the model does not return `ModelOutputs`, or the mask is no mask.
        ValueError: the model's outputs or the mask have a wrong shape, or its parameters are on
            another device than the observations.

    Example:
        >>> from parllel.torch.distributions import DistParams, MultiCategorical
        >>> def model(observation):
        ...     return ModelOutputs(DistParams(logits=observation), observation.sum(dim=-1))
        >>> agent = PgAgent(model, MultiCategorical([2, 2]), torch.zeros(1, 4))
        >>> action, agent_info = agent.step(torch.tensor([[0.0, 9, 9, 0]]), deterministic=True)
        >>> action, agent_info["value"]
        (tensor([[1, 0]]), tensor([18.]))
    """

    def __init__(
        self,
        model: Callable[..., ModelOutputs],
        distribution: Distribution,
        example_obs: object,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator)
        self.distribution = distribution
        self._space: spaces.Space[Any] | None = None  # of the environments' actions
        self._action_map: ActionMap | None = None  # None: actions are the distribution's own
        mask = find_mask(self._rows(example_obs))
        self._has_mask = mask is not None
        self._example_params = self._check_outputs(*self._try_model(example_obs), mask)

    def bind_actions(self, space: spaces.Space[Any]) -> None:
        """Learn which actions environments take: a sampler calls it when it is made.

        From then on `step` gives actions as environments and the sample tree have them, and
        `evaluate` takes such: integers that are counted from the space's `start`, numbers that
        are scaled to the bounds of a Box.

        Raises:
            TypeError, ValueError: the distribution has other actions than the space
                (`Distribution.map_actions`); or the agent acts in another space already.
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
            deterministic: take the most probable action instead of drawing one.

        Returns:
            The actions, of a `Categorical` int64 [B], and a dictionary of `value` and `log_prob`,
            float32 [B]. They are made in torch's inference mode: clone them before autograd uses
            them.

        Raises:
            ValueError: on the host, a row's mask allows no action. On a device nothing looks for
                such a row: its `log_prob` is NaN (`Categorical.normalize`).
        """
        rows = self._rows(observation)
        return self._act(self.model(rows), rows, deterministic=deterministic)

    def _act(
        self, outputs: ModelOutputs, rows: Any, *, deterministic: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `step` does for the model's outputs for rows of observations."""
        params, value = self._normalized(outputs, rows), outputs.value
        distribution = self.distribution
        if deterministic:
            action = distribution.mode(params)
        else:
            action = distribution.sample(params, self._generator)
        if self._action_map is not None:
            action = self._action_map.to_space(action)
        # Of the action as the tree keeps it, which may be rounded: so `evaluate` finds the same.
        log_prob = distribution.log_prob(params, self._from_space(action))
        return action, {"value": value, "log_prob": log_prob}

    @in_inference_mode
    def value(self, observation: object) -> Tensor:
        """Return the value estimate of each row, float32 [B]."""
        return self._outputs(observation).value

    def evaluate(self, observation: object, action: Tensor) -> Evaluation:
        """Return log-probability, entropy and value of each row, with gradients.

        The model is in its training mode.

        Args:
            observation: rows [N, ...] of observations.
            action: the actions that were taken, as `step` returned them; of a `Categorical`
                integers [N].

        Raises:
            ValueError: on the host, a row's mask allows no action.
        """
        rows = self._rows(observation)
        with in_mode(self.model, training=True):
            outputs = self.model(rows)
        return self._evaluate(outputs, rows, action)

    def _evaluate(self, outputs: ModelOutputs, rows: Any, action: Tensor) -> Evaluation:
        """Return what `evaluate` does for the model's outputs for rows of observations."""
        params, value = self._normalized(outputs, rows), outputs.value
        distribution = self.distribution
        log_prob = distribution.log_prob(params, self._from_space(action))
        return Evaluation(log_prob, distribution.entropy(params), value)

    def _from_space(self, action: Tensor) -> Tensor:
        """Return the distribution's own actions for those of the environments' space."""
        if self._action_map is not None:
            return self._action_map.from_space(action)
        return action if action.is_floating_point() else action.long()  # kept in fewer bits

    def _normalized(self, outputs: ModelOutputs, rows: Any) -> Tensor:
        """Return normalized parameters of the model's outputs for rows of observations."""
        mask = mask_for(rows, is_expected=self._has_mask)
        return self.distribution.normalize(outputs.dist_params, mask)

    def _check_outputs(self, outputs: object, n_rows: int, mask: Tensor | None) -> Tensor:
        """Return the normalized parameters of the example."""
        if not isinstance(outputs, ModelOutputs):
            raise TypeError(
                f"model: it returned a {type(outputs).__name__}, expected"
                " ModelOutputs(dist_params=DistParams(...), value=...)"
            )
        with torch.no_grad():
            params = self.distribution.normalize(outputs.dist_params)
            if mask is not None:  # an example may be all zeros, and so allow nothing
                self.distribution.normalize(outputs.dist_params, torch.ones_like(mask))
        shapes = {
            "dist_params": (params, (n_rows, *self.distribution.params_shape)),
            "value": (outputs.value, (n_rows,)),
        }
        for name, (tensor, expected) in shapes.items():
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"model: {name} has shape {tuple(tensor.shape)}, expected {expected} for"
                    f" {n_rows} rows of observations"
                )
        return params
