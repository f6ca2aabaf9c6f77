"""Environments of the bench of worker processes, which import no more than this file needs."""

import time
from typing import Any

import gymnasium as gym
import numpy as np


class Idle(gym.Env):
    """Do nothing, or burn processor time."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, burn_s: float = 0.0) -> None:
        self._burn_ns = int(burn_s * 1e9)
        self._observation = np.zeros(4, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._observation, {}

    def step(self, action: Any) -> Any:
        if self._burn_ns:
            end = time.thread_time_ns() + self._burn_ns  # of this thread: waiting is no burning
            while time.thread_time_ns() < end:
                pass
        return self._observation, 0.0, False, False, {}


def make_cartpole() -> gym.Env:
    return gym.make("CartPole-v1", disable_env_checker=True)
