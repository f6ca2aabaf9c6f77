"""QAgent: an agent of action values, which takes the best action or, now and then, any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from parllel.samplers import Part
from parllel.schedules import Schedule, value_at
from parllel.torch.agents.action_mask import find_mask, mask_for
from parllel.torch.agents.agent import Agent, in_inference_mode
from parllel.torch.distributions.categorical import masked


class QAgent(Agent[Tensor]):
    """Choose among discrete actions by their values, epsilon-greedily.

    With probability epsilon each environment takes an action that is drawn evenly, and otherwise
    the one with the highest value. Both are drawn for all environments at once, on the device of
    the model; the host waits for nothing.

    Epsilon is a number or a schedule for all environments, or one number for each of them, as
    Ape-X has it: epsilon_i = epsilon ** (1 + alpha * i / (N - 1)), i = 0 ... N - 1, with
    epsilon = 0.4 and alpha = 7 (Horgan et al. 2018, arXiv:1803.00933, section 4.1):

        >>> n_envs = 8
        >>> ape_x = 0.4 ** (1 + 7 * np.arange(n_envs) / (n_envs - 1))
        >>> ape_x.round(4).tolist()
        [0.4, 0.16, 0.064, 0.0256, 0.0102, 0.0041, 0.0016, 0.0007]

    Where the observation is a tree with a leaf `action_mask`, bool or integers [B, n], the agent
    takes only actions whose entry is not 0, and the others have a value of -inf. The model is
    given the whole tree.

    Args:
        model: takes rows [B, ...] of observations and returns the values of all actions, float32
            [B, n].
        example_obs: rows of observations, on which the model is tried once.
        epsilon: probability of an action that is drawn evenly, in [0, 1]: a number, a schedule, or
            a number for each environment, in the order of the sample tree's columns.
        generator: source of randomness of the actions, on the device of the observations; torch's
            own by default.
        keeps_value: whether `step` gives `value`, the value of the best action, of which
            `transforms.EstimateAdvantage` makes lambda returns.

    Raises:
        TypeError: epsilon is none of these, the model returns no tensor, or the mask is no mask.
        ValueError: epsilon is not in [0, 1], the model's values or the mask have a wrong shape, or
            its parameters are on another device than the observations.

    Example:
        >>> agent = QAgent(torch.nn.Identity(), torch.zeros(1, 3), epsilon=ape_x[:2])
        >>> agent.step(torch.tensor([[0.0, 2, 1], [3, 2, 1]]), deterministic=True)
        (tensor([1, 0]), {})
    """

    takes_part = True  # which environments `step` acts for, where these take turns

    def __init__(
        self,
        model: Callable[..., Tensor],
        example_obs: object,
        epsilon: float | Schedule | Sequence[float] | NDArray[np.floating[Any]],
        generator: torch.Generator | None = None,
        *,
        keeps_value: bool = False,
    ) -> None:
        super().__init__(model, generator)
        self._keeps_value = keeps_value
        self._start = 0  # the first action of the environments' space
        mask = find_mask(self._rows(example_obs))
        self._has_mask = mask is not None
        values, n_rows = self._try_model(example_obs)
        if not isinstance(values, Tensor):
            raise TypeError(f"model: it returned a {type(values).__name__}, expected a tensor")
        if values.ndim != 2 or len(values) != n_rows or not values.is_floating_point():
            raise ValueError(
                f"model: it returned {values.dtype} {tuple(values.shape)}, expected floats"
                f" ({n_rows}, n), the values of n actions for {n_rows} rows of observations"
            )
        if mask is not None:  # an example may be all zeros, and so allow nothing
            masked(values, torch.ones_like(mask))
        self._n_actions = values.shape[1]
        self._progress = 0.0
        self._schedule = epsilon if callable(epsilon) else None
        self._epsilon: float | Tensor = 0.0
        if isinstance(epsilon, Sequence | np.ndarray):
            each = [value_at("epsilon", one, 0.0, least=0, most=1) for one in epsilon]
            self._epsilon = torch.tensor(each, device=values.device)
        else:
            self._epsilon = value_at("epsilon", epsilon, 0.0, least=0, most=1)

    def set_progress(self, progress: float) -> None:
        """Set epsilon to what its schedule gives, where it has one.

        Args:
            progress: share of the run that is done, in [0, 1].

        Raises:
            TypeError, ValueError: the schedule gives no number in [0, 1].
        """
        if self._schedule is not None:
            self._epsilon = value_at("epsilon", self._schedule, progress, least=0, most=1)
        self._progress = progress

    def bind_actions(self, space: spaces.Space[Any]) -> None:
        """Learn which actions environments take: a sampler calls it when it is made.

        Raises:
            TypeError: the space is not Discrete.
            ValueError: it has another number of actions than the model gives values.
        """
        if not isinstance(space, spaces.Discrete):
            raise TypeError(f"action space: got {space}, expected Discrete; use another agent")
        if space.n != self._n_actions:
            raise ValueError(
                f"action space: got {space}, expected {self._n_actions} actions, as the model gives"
                " values"
            )
        self._start = int(space.start)

    @in_inference_mode
    def step(
        self, observation: object, *, deterministic: bool = False, part: Part | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose an action for each row.

        Args:
            observation: rows [B, ...] of observations.
            deterministic: take the best action everywhere.
            part: the environments of the rows, where they are not all of them; each row then has
                the epsilon of its own environment.

        Returns:
            The actions, int64 [B], and a dictionary that is empty, or has `value`, float32 [B].

        Raises:
            ValueError: there are other rows than environments with an epsilon of their own; or, on
                the host, a row's mask allows no action. On a device nothing looks for such a row:
                its action is the first one.
        """
        return self._choose(self.action_values(observation), deterministic=deterministic, part=part)

    def _choose(
        self, values: Tensor, *, deterministic: bool, part: Part | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `step` does for the values of all actions of each row."""
        action = values.argmax(-1)
        if not deterministic:
            action = torch.where(self._explores(values, part), self._any_action(values), action)
        agent_info = {"value": values.amax(-1)} if self._keeps_value else {}
        return (action + self._start if self._start else action), agent_info

    @in_inference_mode
    def value(self, observation: object) -> Tensor:
        """Return the value of the best action of each row, float32 [B]."""
        return self.action_values(observation).amax(-1)

    def action_values(
        self, observation: object, *, model: Callable[..., Tensor] | None = None
    ) -> Tensor:
        """Return the values of all actions, float32 [N, n], with gradients.

        Args:
            observation: rows [N, ...] of observations.
            model: a copy of the agent's model, such as a target network; the agent's own by
                default. It runs in the mode that it is in.

        Returns:
            The values; -inf for actions that the observation's `action_mask` does not allow.
        """
        rows = self._rows(observation)
        return self._masked((self.model if model is None else model)(rows), rows)

    def _masked(self, values: Tensor, rows: Any) -> Tensor:
        """Return values with -inf for the actions that rows of observations do not allow."""
        mask = mask_for(rows, is_expected=self._has_mask)
        return values if mask is None else masked(values, mask)

    def action_index(self, action: Tensor) -> Tensor:
        """Return the columns of `action_values` for actions that `step` returned, int64 [N]."""
        return action.long() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Return what `Agent.state_dict` does, and `progress`, which decides on epsilon."""
        return {**super().state_dict(), "progress": self._progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an agent was when `state_dict` was called (`Agent.load_state_dict`)."""
        super().load_state_dict(state)
        self.set_progress(state["progress"])

    def _explores(self, values: Tensor, part: Part | None) -> Tensor:
        """Return whether each row takes any action, bool [B]."""
        epsilon, device, n_rows = self._epsilon, values.device, len(values)
        if isinstance(epsilon, Tensor):
            n_envs = n_rows if part is None else part.n_envs
            if len(epsilon) != n_envs:
                raise ValueError(
                    f"epsilon: got {len(epsilon)} numbers for {n_envs} rows, expected one for each"
                    " environment; give one number, or as many as the sampler has environments"
                )
            if part is not None:
                epsilon = epsilon[part.columns.start : part.columns.stop]
        return torch.rand(n_rows, device=device, generator=self._generator) < epsilon

    def _any_action(self, values: Tensor) -> Tensor:
        """Draw one of the allowed actions of each row evenly, int64 [B]: the first of a race."""
        race = torch.empty_like(values).exponential_(generator=self._generator)
        return race.masked_fill_(values == -torch.inf, torch.inf).argmin(-1)
