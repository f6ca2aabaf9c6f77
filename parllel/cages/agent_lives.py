"""AgentLives: which agents live in environments of several, step by step; and their random actions.

A stepper asks it; it knows nothing of how environments keep the laws (`values/agent_results.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from parllel.cages.values.agent_forms import AgentForm, owner_of
from parllel.cages.values.spaces import ACTION_MASK, find_mask, flat_mask, sample_action


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


def draws_of(lives: AgentLives | None) -> Any:  # Any: one of two classes, each with two functions
    """Return how random actions are drawn, and the masks by which they are, as plain data."""
    return _DrawsOfAgents if lives is not None and not lives.form.is_axis else _Draws


class _Draws:
    """Random actions of environments, and the masks by which the next ones are drawn."""

    sample = staticmethod(sample_action)

    @staticmethod
    def mask(space: gym.Space[Any], observation: Any, info: Any) -> list[Any] | None:
        """Return the mask as plain data; None for none. Arguments are those of `sample_action`."""
        mask = find_mask(space, observation, info)
        return None if mask is None else flat_mask(mask).tolist()


class _DrawsOfAgents:
    """The same where actions and observations are dictionaries of agents: each has its own mask.

    >>> space = gym.spaces.Dict({"ada": gym.spaces.Discrete(3)})
    >>> _DrawsOfAgents.sample(space, {"ada": {"action_mask": [0, 1, 0]}})
    {'ada': np.int64(1)}
    """

    @staticmethod
    def sample(space: gym.spaces.Dict, observation: Any, info: Any = None) -> dict[str, Any]:
        """Draw an action for each agent, with the arguments of `sample_action`."""
        each = _each(space, observation, info)
        return {name: sample_action(*own) for name, *own in each}

    @staticmethod
    def mask(space: gym.spaces.Dict, observation: Any, info: Any) -> dict[str, Any]:
        """Return the mask of each agent as plain data, by the agents' names."""
        return {name: _Draws.mask(*own) for name, *own in _each(space, observation, info)}


def _each(space: gym.spaces.Dict, observation: Any, info: Any) -> Iterator[tuple[Any, ...]]:
    """Yield of each agent its name, action space and observation, and an info with its mask.

    Masks are in the observations; where there are none, as after a state was set, in `info`.
    """
    masks = {} if observation is not None else (info or {}).get(ACTION_MASK) or {}
    for name, part in space.items():
        own = None if observation is None else observation[name]
        yield name, part, own, {ACTION_MASK: masks.get(name)}
