"""RecurrentPgAgent: a policy-gradient agent whose model has a memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parllel.torch.agents.agent import in_inference_mode
from parllel.torch.agents.modes import in_mode
from parllel.torch.agents.pg_agent import Evaluation, ModelOutputs, PgAgent
from parllel.torch.agents.previous_inputs import PreviousInputs
from parllel.torch.agents.recurrent import Recurrence, Recurrent
from parllel.torch.distributions import Distribution


class RecurrentPgAgent(Recurrent[ModelOutputs], PgAgent):
    """Draw actions from a distribution whose parameters a model with a memory gives.

    A `RecurrentSampler` has it carry a state for each environment from step to step, and put back
    where an episode ends. `PPO` learns from it by minibatches of whole environments, over which
    `evaluate` runs the model again from the state before the batch.

    With `previous`, the model gets the previous action and the reward for it, too: zeros in the
    first step of an episode, and in the value of a final observation those of its own last step.
    Each step then has `agent_info.previous`, the inputs that the agent acted with, float32 [B, k]:
    learning reads these, whatever transforms make of rewards.

    Args:
        model: takes sequences of observations and a state, and returns `ModelOutputs` and the state
            after them, as `models.RecurrentNetwork` (see `Recurrent`).
        distribution, example_obs, generator: as for `PgAgent`.
        previous: makes the inputs of the previous action and reward; None for no such inputs.
        keeps_state: whether `agent_info` has `rnn_state`, the state before each step, for
            sequences from a replay buffer. `initial_rnn_state` of a batch needs no such branch.

    Raises:
        TypeError: as for `PgAgent`; or the model has no `first_state`, or returns no pair.
        ValueError: as for `PgAgent`; or the state after a step has another form than before.

    Example:
        >>> from torch import nn
        >>> from parllel.torch.distributions import Categorical, DistParams
        >>> class Counting(nn.Module):  # its state is the number of steps, as is the value
        ...     def first_state(self, n_envs):
        ...         return {"count": torch.zeros(n_envs)}
        ...     def forward(self, observation, state, is_first=None):
        ...         count = state["count"] + 1
        ...         return ModelOutputs(DistParams(logits=observation[0]), count), {"count": count}
        >>> agent = RecurrentPgAgent(Counting(), Categorical(2), torch.zeros(1, 2))
        >>> agent.begin(2)
        >>> for _ in range(3):
        ...     action, agent_info = agent.step(torch.zeros(2, 2))
        >>> agent.reset_state([1])
        >>> agent_info["value"], agent.rnn_state["count"]
        (tensor([3., 3.]), tensor([3., 0.]))
    """

    def __init__(
        self,
        model: Callable[..., Any],  # Any: a pair, as `Recurrent` says
        distribution: Distribution,
        example_obs: object,
        generator: torch.Generator | None = None,
        *,
        previous: PreviousInputs | None = None,
        keeps_state: bool = False,
    ) -> None:
        self._previous, self._keeps_state = previous, keeps_state
        super().__init__(model, distribution, example_obs, generator)

    @in_inference_mode
    def step(
        self, observation: object, *, deterministic: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        """Choose an action for each row, as `PgAgent.step`, and carry the state on.

        Returns:
            The actions and a dictionary, as `PgAgent.step`; with `previous` and `rnn_state` of
            before the step, where they are kept.

        Raises:
            RuntimeError: `begin` was not called, or the reward of the last step is missing.
            ValueError: as for `PgAgent.step`.
        """
        rows, before = self._rows(observation), self._settled()
        outputs, after = self._run(rows, before)
        action, agent_info = self._act(outputs, rows, deterministic=deterministic)
        self._carry(after, self._from_space(action))
        return action, {**agent_info, **self._kept(before)}

    @in_inference_mode
    def value(self, observation: object, *, columns: Sequence[int] | None = None) -> Tensor:
        """Return the value estimate of each row, float32 [n]; the state stays what it is.

        Args:
            observation: rows [n, ...] of observations.
            columns: the environment of each row; all in their order by default.
        """
        return self._peek(self._rows(observation), columns).value

    def evaluate(
        self, observation: object, action: Tensor, *, recurrence: Recurrence | None = None
    ) -> Evaluation:
        """Return log-probability, entropy and value of each row, float32 [T, N] with gradients.

        The model is in its training mode. The state that the agent acts with stays what it is.

        Args:
            observation: [T, N, ...], observations of sequences.
            action: [T, N, ...], the actions that were taken, as `step` returned them.
            recurrence: the state before the sequences, and where episodes begin in them.

        Raises:
            TypeError: there is no recurrence.
            ValueError: it has previous inputs and the agent has none, or the other way round; or as
                for `PgAgent.evaluate`.
        """
        with in_mode(self.model, training=True):
            outputs, rows = self._unroll(self._rows(observation), recurrence)
        found = self._evaluate(outputs, rows, action.flatten(0, 1))
        n_steps, n_envs = action.shape[:2]
        return Evaluation(*(each.view(n_steps, n_envs) for each in found))

    def _own_action(self, action: Tensor) -> Tensor:
        return self._from_space(action)
