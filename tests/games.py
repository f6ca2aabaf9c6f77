"""Games that take the place of Atari's in short tests: small, quick, and drawn at random."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation
from numpy.typing import NDArray

SIDE = 36  # the least that NatureCnn takes


class Game(gym.Env[NDArray[np.uint8], int]):
    """Shows random frames. Episodes have 3 to 9 steps, and some are cut off."""

    observation_space: spaces.Space[Any] = spaces.Box(0, 255, (SIDE, SIDE), np.uint8)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(3, 10))
        return self._frame(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        points = float(self.np_random.integers(-1, 3)) * int(action)
        is_terminated = self._left == 0 and bool(self.np_random.integers(2))
        return self._frame(), points, is_terminated, self._left == 0, {}

    def _frame(self) -> Any:
        return self.np_random.integers(0, 256, (SIDE, SIDE), np.uint8)


def make_game() -> gym.Env[Any, Any]:
    return FrameStackObservation(Game(), 4, padding_type="zero")


def make_games(
    *, num_envs: int, autoreset_mode: AutoresetMode, **settings_of_atari: Any
) -> SyncVectorEnv:
    """Make games in the place of `AtariVectorEnv`."""
    return SyncVectorEnv([make_game] * num_envs, autoreset_mode=autoreset_mode)
