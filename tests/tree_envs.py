"""Environments whose observations and actions are trees; worker processes import them.

So there is no torch here, which takes a process seconds to import.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from parllel.testing.toy_envs import Echo

SPACE = spaces.Dict(
    {
        "move": spaces.Tuple((spaces.Discrete(5), spaces.Box(-1, 1, (2,)))),
        "talk": spaces.MultiBinary(3),
    }
)


def make_echo() -> gym.Env:
    return TimeLimit(Echo(SPACE), 3)


class Dotted(gym.Env[Any, Any]):
    """Shows its step as "a.b" and the negative one as a -> b; takes actions of such a space."""

    action_space = spaces.Dict(
        {"a.b": spaces.Discrete(3), "a": spaces.Dict({"b": spaces.Box(-1, 1, (2,), np.float32)})}
    )
    observation_space = spaces.Dict(
        {
            "a.b": spaces.Box(-99, 99, (), np.float32),
            "a": spaces.Dict({"b": spaces.Box(-99, 99, (), np.float32)}),
        }
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self.n_steps = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        reward = float(action["a.b"] + 10 * action["a"]["b"].sum())
        info = {"a.b": self.n_steps, "a": {"b": -self.n_steps}}
        return self._show(), reward, False, self.n_steps == 4, info

    def _show(self) -> Any:
        return {"a.b": np.float32(self.n_steps), "a": {"b": np.float32(-self.n_steps)}}
