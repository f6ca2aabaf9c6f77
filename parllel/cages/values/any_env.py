"""AnyEnv: the kinds of single environments that cages step; a PettingZoo one, as a protocol."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import gymnasium as gym


class ParallelEnv(Protocol):
    """What cages ask of a parallel environment, as `pettingzoo.ParallelEnv` has it.

    >>> from parllel.testing.toy_agents import Relay
    >>> env: ParallelEnv = Relay()

    Attributes:
        possible_agents: all agents that may ever live: names, numbers or other constants.
        agents: those that act in the next step. None is there after an episode's end.
    """

    possible_agents: Any  # Any: a sequence
    agents: Any  # Any: a sequence, which may be another one after each step

    def observation_space(self, agent: Any, /) -> gym.Space[Any]:
        """Return the space of an agent's observations."""

    def action_space(self, agent: Any, /) -> gym.Space[Any]:
        """Return the space of an agent's actions."""

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode; return observations and infos, dictionaries of agents."""

    def step(self, actions: Any, /) -> Any:
        """Take the actions of all agents that live; return five dictionaries of agents."""

    def close(self) -> None:
        """Give back what the environment holds."""


AnyEnv: TypeAlias = "gym.Env[Any, Any] | ParallelEnv"
"""An environment of gymnasium, or a PettingZoo parallel environment."""
