"""AgentLives: which agents live in environments of several, step by step; and their random actions.

A stepper asks it; it knows nothing of how environments keep the laws (`values/agent_results.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from parllel.cages.values.agent_forms import AgentForm, owner_of
from parllel.cages.values.spaces import (
    ACTION_MASK,
    find_mask,
    flat_mask,
    n_choices,
    sample_action,
)


class AgentLives:
    """The agents that act in the next step of each environment.

    >>> from parllel.cages import ParallelAgents
    >>> from parllel.testing.toy_agents import Relay
    >>> env = ParallelAgents(Relay())
    >>> _ = env.reset()
    >>> lives = AgentLives([env], env.agent_form)
    >>> lives.look(0), lives.acted()
    (True, [array([ True,  True, False])])

    Args:
        envs: the environments; each tells by `alive` which agents act in its next step.
        form: that of their rewards and flags.
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], form: AgentForm) -> None:
        self._owners = [owner_of(env, "alive") for env in envs]
        self.form = form
        n_agents = len(form.names)
        self._alive: list[NDArray[np.bool_]] = [np.zeros(n_agents, np.bool_) for _ in envs]

    def look(self, number: int) -> bool:
        """Ask an environment which agents live, after a reset or a step; tell whether any does."""
        self._alive[number] = np.array(self._owners[number].alive, np.bool_)
        return bool(self._alive[number].any())

    def look_at_all(self) -> None:
        """Ask all environments, after their states were set."""
        for number in range(len(self._owners)):
            self.look(number)

    def acted(self) -> list[Any]:
        """Return for each environment which agents have acted in the step, in the agents' form.

        They are those that lived before: call this before `look`.
        """
        return list(map(self.form.value_of, self._alive))


class Draws:
    """Random actions of environments, and the masks by which the next ones are drawn.

    Where agents come and go, each has its own mask, in its observation or in its info.

    >>> form = AgentForm(("ada", "bob"), is_axis=True, has_flags=True)
    >>> space = gym.spaces.MultiDiscrete([3, 3])
    >>> Draws(form).sample(space, np.zeros((2, 4)), {"bob": {"action_mask": [0, 0, 1]}})[1]
    np.int64(2)

    Args:
        form: that of agents who come and go; None where there are none.
    """

    def __init__(self, form: AgentForm | None) -> None:
        self._form = form

    def sample(self, space: Any, observation: Any, info: Any = None) -> Any:
        """Draw an action, with the arguments of `sample_action`."""
        if self._form is None:
            return sample_action(space, observation, info)
        if self._form.is_axis:
            return sample_action(space, observation, self._joint(space, info or {}))
        return {name: sample_action(*own) for name, *own in _each(space, observation, info)}

    def mask(self, space: Any, observation: Any, info: Any) -> Any:
        """Return the mask by which `sample` draws, as plain data; None for none.

        It is what `sample` takes in an info as `action_mask`; of dictionaries, by the names.
        """
        if self._form is None:
            return _packed(space, observation, info)
        if self._form.is_axis:
            return _packed(space, observation, self._joint(space, info or {}))
        return {name: _packed(*own) for name, *own in _each(space, observation, info)}

    def _joint(self, space: Any, info: Mapping[str, Any]) -> dict[str, Any]:
        """Return an info with one mask for all agents, of those that their infos have."""
        assert self._form is not None
        if ACTION_MASK in info:  # after a state was set
            return {ACTION_MASK: info[ACTION_MASK]}
        own = [info.get(name, {}).get(ACTION_MASK) for name in self._form.names]
        if all(mask is None for mask in own) or not isinstance(space, gym.spaces.MultiDiscrete):
            return {}
        n_choices_of_one = sum(n_choices(space)) // len(own)
        every = np.ones(n_choices_of_one, np.int8)
        masks = [every if mask is None or not np.any(flat_mask(mask)) else mask for mask in own]
        return {ACTION_MASK: np.concatenate([flat_mask(mask) for mask in masks])}


def _packed(space: Any, observation: Any, info: Any) -> list[Any] | None:
    mask = find_mask(space, observation, info)
    return None if mask is None else flat_mask(mask).tolist()


def _each(space: gym.spaces.Dict, observation: Any, info: Any) -> Iterator[tuple[Any, ...]]:
    """Yield of each agent its name, action space and observation, and an info with its mask."""
    info = info or {}
    masks = info.get(ACTION_MASK) if observation is None else None  # after a state was set
    for name, part in space.items():
        own = None if observation is None else observation[name]
        mask = masks.get(name) if masks else info.get(name, {}).get(ACTION_MASK)
        is_none = mask is not None and not np.any(flat_mask(mask))  # of an agent that has ended
        yield name, part, own, {} if is_none or mask is None else {ACTION_MASK: mask}
