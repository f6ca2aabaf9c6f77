"""Environments that do not keep to what they declare; worker processes can import them too."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Misfit(gym.Env):
    """Return a wrong member of an observation, or another wrong result, in one step of an episode.

    Args:
        wrong: members of the observation that replace right ones; None leaves the member out.
        result: other results by name: "reward", "terminated", "info".
        at: the number of the step; 0 is the reset.
    """

    observation_space = spaces.Dict(
        {
            "kind": spaces.Discrete(3),
            "place": spaces.Box(-9, 9, (2,), np.float32),
            "image": spaces.Box(0, 255, (60, 20, 3), np.uint8),  # large: written row by row
            "icon": spaces.Box(0, 255, (4, 4, 3), np.uint8),  # small: written all at once
        }
    )
    action_space = spaces.Discrete(2)

    def __init__(
        self,
        wrong: dict[str, Any] | None = None,
        result: dict[str, Any] | None = None,
        at: int = 2,
    ) -> None:
        self._wrong = wrong or {}
        self._result = result or {}
        self._at = at
        self._step = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._step = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self._step += 1
        results = {"reward": 1.0, "terminated": False, "truncated": False, "info": {}}
        if self._step == self._at:
            results |= self._result
        return (self._observe(), *results.values())

    def _observe(self) -> dict[str, Any]:
        observation: dict[str, Any] = {
            "kind": 1,
            "place": np.full(2, self._step, np.float32),
            "image": np.full((60, 20, 3), self._step, np.uint8),
            "icon": np.full((4, 4, 3), self._step, np.uint8),
        }
        if self._step == self._at:
            observation |= self._wrong
        return {name: value for name, value in observation.items() if value is not ...}


class Returns(gym.Env):
    """Return these results of `reset` and `step`, whatever they are."""

    observation_space = spaces.Box(-1, 1, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, reset: Any, step: Any = None) -> None:
        self._reset, self._step = reset, step

    def reset(self, **_: Any) -> Any:
        return self._reset

    def step(self, action: Any) -> Any:
        return self._step


class Shown(gym.Env):
    """Show given observations in turn, with given infos; the last of several ends an episode."""

    action_space = spaces.Discrete(2)

    def __init__(
        self, space: spaces.Space[Any], values: list[Any], infos: list[dict[str, Any]] | None = None
    ) -> None:
        self.observation_space = space
        self._values = values
        self._infos = infos or [{}]
        self._step = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._step = 0
        return self._values[0], {}

    def step(self, action: Any) -> Any:
        self._step += 1
        info = self._infos[min(self._step, len(self._infos)) - 1]
        ends = self._step == len(self._infos) > 1
        return self._values[self._step % len(self._values)], 0.0, False, ends, info


class Still:
    """An agent that always takes action 0, or given ones."""

    def __init__(self, action: Any = None) -> None:
        self._action = action

    def step(self, observation: Any, *, deterministic: bool = False) -> Any:
        if self._action is not None:
            return self._action, {}
        leaf = observation
        while hasattr(leaf, "walk"):
            leaf = next(iter(leaf.values()))
        return np.zeros(len(leaf), np.int64), {}

    def value(self, observation: Any) -> Any:
        raise NotImplementedError
