"""CategoricalPgAgent: a policy-gradient agent that chooses among discrete actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from parllel.torch.agents.agent import Agent, in_inference_mode
from parllel.torch.agents.modes import in_mode
from parllel.torch.distributions import Categorical, DistParams

__all__ = ["CategoricalPgAgent", "DistParams", "Evaluation", "ModelOutputs"]


class ModelOutputs(NamedTuple):
    """The outputs of a model for rows of observations.

    Args:
        dist_params: parameters [..., dim] of the distribution of actions.
        value: float32 [...], estimate of the discounted return from the observation on.

    Example:
        >>> outputs = ModelOutputs(DistParams(logits=torch.zeros(4, 2)), value=torch.zeros(4))
        >>> outputs.value.shape
        torch.Size([4])
    """

    dist_params: DistParams
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


class CategoricalPgAgent(Agent[ModelOutputs]):
    """Choose among discrete actions with a model that gives a distribution and a value.

    Observations may be Arrays, NumPy arrays or tensors, or trees of them; on the host they are
    read without a copy. The model sees them with the dtype that they are stored in.

    Args:
        model: takes rows of observations and returns `ModelOutputs`.
        distribution: the distribution of actions.
        example_obs: rows [B, ...] of observations, on which the model is tried once.
        generator: source of randomness of the actions; torch's own by default.

    Raises:
        TypeError: the model does not return `ModelOutputs`.
        ValueError: its outputs have a wrong shape, or its parameters are on another device than
            the observations.

    Example:
        >>> def model(observation):
        ...     return ModelOutputs(DistParams(logits=observation), observation.sum(dim=-1))
        >>> agent = CategoricalPgAgent(model, Categorical(dim=2), torch.zeros(1, 2))
        >>> action, agent_info = agent.step(torch.tensor([[0.0, 9.0]]), deterministic=True)
        >>> action, agent_info["value"]
        (tensor([1]), tensor([9.]))
    """

    def __init__(
        self,
        model: Callable[..., ModelOutputs],
        distribution: Categorical,
        example_obs: object,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model)
        self.distribution = distribution
        self._generator = generator
        self._start = 0  # the first action of the environments' space
        self._n_possible = self._check_outputs(*self._try_model(example_obs))

    def bind_actions(self, space: spaces.Space[Any]) -> None:
        """Learn which actions environments take: a sampler calls it when it is made.

        The distribution counts from 0. Actions are counted from the space's `start`, as
        environments and the sample tree have them. A distribution may have more actions than the
        space where the model gave the last ones a probability of 0 when it was tried.

        Raises:
            TypeError: the space is not Discrete.
            ValueError: it has another number of actions than the distribution.
        """
        if not isinstance(space, spaces.Discrete):
            raise TypeError(f"action space: got {space}, expected Discrete; use another agent")
        if not self._n_possible <= space.n <= self.distribution.dim:
            raise ValueError(
                f"action space: got {space}, expected {self.distribution.dim} actions, as the"
                f" distribution has; use Categorical(dim={space.n}), or a model that gives actions"
                f" beyond {space.n} logits of -inf"
            )
        self._start = int(space.start)

    @in_inference_mode
    def step(
        self, observation: object, *, deterministic: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose an action for each row.

        Args:
            observation: rows [B, ...] of observations.
            deterministic: take the most probable action instead of drawing one.

        Returns:
            The actions, int64 [B], and a dictionary of `value` and `log_prob`, float32 [B]. They
            are made in torch's inference mode: clone them before autograd uses them.
        """
        outputs = self._outputs(observation)
        log_probs = self.distribution.log_probs(outputs.dist_params)
        if deterministic:
            action = self.distribution.mode(log_probs)
        else:
            action = self.distribution.sample(log_probs, self._generator)
        log_prob = self.distribution.log_prob(log_probs, action)
        if self._start:
            action = action + self._start
        return action, {"value": outputs.value, "log_prob": log_prob}

    @in_inference_mode
    def value(self, observation: object) -> Tensor:
        """Return the value estimate of each row, float32 [B]."""
        return self._outputs(observation).value

    def evaluate(self, observation: object, action: Tensor) -> Evaluation:
        """Return log-probability, entropy and value of each row, with gradients.

        The model is in its training mode.

        Args:
            observation: rows [N, ...] of observations.
            action: integers [N], the actions that were taken, as `step` returned them.
        """
        with in_mode(self.model, training=True):
            outputs = self._outputs(observation)
        log_probs = self.distribution.log_probs(outputs.dist_params)
        index = action.long() - self._start if self._start else action.long()
        return Evaluation(
            self.distribution.log_prob(log_probs, index),
            self.distribution.entropy(log_probs),
            outputs.value,
        )

    def _check_outputs(self, outputs: object, n_rows: int) -> int:
        """Return how many actions there are up to the last one that the model leaves possible."""
        if not isinstance(outputs, ModelOutputs):
            raise TypeError(
                f"model: it returned a {type(outputs).__name__}, expected"
                " ModelOutputs(dist_params=DistParams(...), value=...)"
            )
        with torch.no_grad():
            log_probs = self.distribution.log_probs(outputs.dist_params)
        shapes = {
            "dist_params": (log_probs, (n_rows, self.distribution.dim)),
            "value": (outputs.value, (n_rows,)),
        }
        for name, (tensor, expected) in shapes.items():
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"model: {name} has shape {tuple(tensor.shape)}, expected {expected} for"
                    f" {n_rows} rows of observations"
                )
        # A probability of 0 is raised to the smallest one by the distribution.
        is_possible = (log_probs.exp() > 2 * torch.finfo(log_probs.dtype).tiny).any(dim=0)
        return int(is_possible.nonzero().amax()) + 1 if is_possible.any() else 0
