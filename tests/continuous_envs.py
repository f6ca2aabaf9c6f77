"""Small environments with numbers as actions, for tests of continuous control."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LOW, HIGH = np.float32([-1, 10]), np.float32([7, 11])


class Drift(gym.Env[Any, Any]):
    """Give random numbers and rewards, end at random, terminated or truncated.

    It raises where an action is not in its space, whose bounds differ in each number.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space: spaces.Space[Any] = spaces.Box(LOW, HIGH)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action: got {action!r}, expected a member of {self.action_space}")
        terminated, truncated = self.np_random.random(2) < 0.2
        reward = self.np_random.normal() + 0.1 * float(action[0])
        return self._observe(), reward, bool(terminated), bool(truncated), {}

    def _observe(self) -> Any:
        return self.np_random.normal(0, 2, 3).astype(np.float32)


class Pointing(gym.Env[Any, Any]):
    """Pay most where an action is what the observation tells: 3 + 5 x, in the bounds [0, 10].

    The reward of an episode, of one step, is -|action - (3 + 5 x)|: -3.4 at random.
    """

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(0, 10, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._x = self.np_random.uniform(-0.6, 1)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = -abs(float(action[0]) - (3 + 5 * self._x))
        return self._observe(), reward, True, False, {}

    def _observe(self) -> Any:
        return np.float32([self._x])


class PointingAtPixels(Pointing):
    """The same task, seen as a bright column in a picture of 12 by 12 pixels."""

    observation_space = spaces.Box(0, 255, (1, 12, 12), np.uint8)

    def _observe(self) -> Any:
        picture = np.zeros((1, 12, 12), np.uint8)
        picture[:, 3:9, 2 + round((self._x + 0.6) / 1.6 * 7)] = 255
        return picture


class Road(gym.Env[Any, Any]):
    """Show a frame of 48 by 48 gray pixels, as small as those of CarRacing, with as many actions.

    Episodes end at random after 8 steps on average.
    """

    observation_space = spaces.Box(0, 255, (48, 48), np.uint8)
    action_space = spaces.Box(np.float32([-1, 0, 0]), np.float32([1, 1, 1]))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action: got {action!r}, expected a member of {self.action_space}")
        terminated, truncated = self.np_random.random(2) < 1 / 16
        return self._observe(), float(action.sum()), bool(terminated), bool(truncated), {}

    def _observe(self) -> Any:
        return self.np_random.integers(0, 256, (48, 48), np.uint8)


def make_road() -> gym.Env[Any, Any]:
    return gym.wrappers.FrameStackObservation(Road(), 3)
