"""RecurrentQAgent: an agent of action values whose model has a memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parllel.samplers import Part
from parllel.schedules import Schedule
from parllel.torch.agents.agent import in_inference_mode
from parllel.torch.agents.previous_inputs import PreviousInputs
from parllel.torch.agents.q_agent import QAgent
from parllel.torch.agents.recurrent import Recurrence, Recurrent


class RecurrentQAgent(Recurrent[Tensor], QAgent):
    """Choose among discrete actions by values that a model with a memory gives, epsilon-greedily.

    A `RecurrentSampler` has it carry a state for each environment. `DQN` learns from it by
    sequences of a `SequenceReplayBuffer`, over which `action_values` runs a model from the state
    that was stored for each step (`keeps_state`).

    Args:
        model: takes sequences of observations and a state, and returns the values of all actions
            for T * B rows, and the state after them, as `models.RecurrentNetwork` (see
            `Recurrent`).
        example_obs, epsilon, generator, keeps_value: as for `QAgent`.
        previous: makes the inputs of the previous action and reward; None for no such inputs
            (`RecurrentPgAgent`).
        keeps_state: whether `agent_info` has `rnn_state`, the state before each step.

    Raises:
        TypeError: as for `QAgent`; or the model has no `first_state`, or returns no pair.
        ValueError: as for `QAgent`; or the state after a step has another form than before.

    Example:
        >>> from torch import nn
        >>> class Turns(nn.Module):  # each action is the best one in its turn
        ...     def first_state(self, n_envs):
        ...         return {"count": torch.zeros(n_envs)}
        ...     def forward(self, observation, state, is_first=None):
        ...         count = state["count"]
        ...         return nn.functional.one_hot(count.long() % 3, 3).float(), {"count": count + 1}
        >>> agent = RecurrentQAgent(Turns(), torch.zeros(1, 4), epsilon=0.0, keeps_state=True)
        >>> agent.begin(1)
        >>> [agent.step(torch.zeros(1, 4))[0].item() for _ in range(4)]
        [0, 1, 2, 0]
        >>> agent.step(torch.zeros(1, 4))[1]
        {'rnn_state': {'count': tensor([4.])}}
    """

    takes_part = False  # a state has all environments: a RecurrentSampler steps them together

    def __init__(
        self,
        model: Callable[..., Any],  # Any: a pair, as `Recurrent` says
        example_obs: object,
        epsilon: float | Schedule | Sequence[float] | NDArray[np.floating[Any]],
        generator: torch.Generator | None = None,
        *,
        keeps_value: bool = False,
        previous: PreviousInputs | None = None,
        keeps_state: bool = False,
    ) -> None:
        self._previous, self._keeps_state = previous, keeps_state
        super().__init__(model, example_obs, epsilon, generator, keeps_value=keeps_value)

    @in_inference_mode
    def step(
        self, observation: object, *, deterministic: bool = False, part: Part | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Choose an action for each row, as `QAgent.step`, and carry the state on.

        Returns:
            The actions, int64 [B], and a dictionary of `value`, and of `previous` and `rnn_state`
            of before the step, where they are kept.

        Raises:
            RuntimeError: `begin` was not called, or the reward of the last step is missing.
            ValueError: as for `QAgent.step`.
        """
        rows, before = self._rows(observation), self._settled()
        values, after = self._run(rows, before)
        values = self._masked(values, rows)
        action, agent_info = self._choose(values, deterministic=deterministic, part=part)
        self._carry(after, self.action_index(action))
        return action, {**agent_info, **self._kept(before)}

    @in_inference_mode
    def value(self, observation: object, *, columns: Sequence[int] | None = None) -> Tensor:
        """Return the value of the best action of each row, float32 [n]; the state stays.

        Args:
            observation: rows [n, ...] of observations.
            columns: the environment of each row; all in their order by default.
        """
        rows = self._rows(observation)
        return self._masked(self._peek(rows, columns), rows).amax(-1)

    def action_values(
        self,
        observation: object,
        *,
        model: Callable[..., Any] | None = None,
        recurrence: Recurrence | None = None,
    ) -> Tensor:
        """Return the values of all actions, float32 [T, N, n], with gradients.

        Args:
            observation: [T, N, ...], observations of sequences.
            model: a copy of the agent's model, such as a target network; the agent's own by
                default. It runs in the mode that it is in.
            recurrence: the state before the sequences, and where episodes begin in them.

        Returns:
            The values; -inf for actions that the observation's `action_mask` does not allow.

        Raises:
            TypeError: there is no recurrence.
            ValueError: it has previous inputs and the agent has none, or the other way round.
        """
        values, rows = self._unroll(self._rows(observation), recurrence, model)
        assert recurrence is not None  # which _unroll has refused
        return self._masked(values, rows).view(*recurrence.is_first.shape, -1)

    def _own_action(self, action: Tensor) -> Tensor:
        return self.action_index(action)
