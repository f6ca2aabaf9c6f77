"""Environments that show stacks of random frames; worker processes import them."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from numpy.typing import NDArray

STACK = 3
FRAME = (3, 2)


class Film(gym.Env[NDArray[np.uint8], int]):
    """Shows random frames. Episodes have 1 to 7 steps; the action is the reward."""

    observation_space: spaces.Space[Any] = spaces.Box(0, 255, FRAME, np.uint8)
    action_space = spaces.Discrete(7)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 8))
        return self._frame(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        is_terminated = self._left == 0 and bool(self.np_random.integers(2))
        return self._frame(), float(action), is_terminated, self._left == 0, {}

    def get_state(self) -> Any:
        return {"left": self._left}

    def set_state(self, state: Any) -> None:
        self._left = state["left"]

    def _frame(self) -> Any:
        return self.np_random.integers(0, 4, FRAME, np.uint8)


class FilmWithSound(Film):
    observation_space = spaces.Dict(
        {"image": Film.observation_space, "sound": spaces.Box(-1, 1, (), np.float32)}
    )

    def _frame(self) -> Any:
        return {"image": super()._frame(), "sound": np.float32(self.np_random.uniform(-1, 1))}


def make_film(fill: str = "first", env: type[Film] = Film) -> gym.Env[Any, Any]:
    padding_type = {"first": "reset", "zero": "zero"}[fill]
    return FrameStackObservation(env(), STACK, padding_type=padding_type)
