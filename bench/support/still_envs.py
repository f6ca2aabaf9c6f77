"""A vector environment whose screens stand still, and an agent that has decided: a step is free."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

N_ACTIONS = 6


class StepSize(NamedTuple):
    """A time step: environments, and the shape of an observation of bytes."""

    n_envs: int
    shape: tuple[int, ...]

    @property
    def are_stacks(self) -> bool:
        """Whether observations are stacks of frames, which can be stored once each."""
        return len(self.shape) == 3

    @property
    def nbytes(self) -> int:
        """Bytes of all observations of a step."""
        return self.n_envs * int(np.prod(self.shape))

    def __str__(self) -> str:
        return f"{self.n_envs:,} x {self.nbytes // self.n_envs:,} B"


class StillEnvs(VectorEnv[Any, Any, Any]):
    """Return the same arrays in each step: what is left is what a sampler does with them.

    All frames of a stack are alike, so that a stack continues the one before it.

    Args:
        size: number of environments, and shape of their observations.
    """

    def __init__(self, size: StepSize) -> None:
        self.num_envs = size.n_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = gym.spaces.Box(0, 255, size.shape, np.uint8)
        self.single_action_space = gym.spaces.Discrete(N_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, size.n_envs)
        self.action_space = batch_space(self.single_action_space, size.n_envs)
        self._observation = still_screens(size)
        self._reward = np.arange(size.n_envs, dtype=np.float64)
        self._never = np.zeros(size.n_envs, np.bool_)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self._observation, {}

    def step(self, actions: Any) -> Any:
        return self._observation, self._reward, self._never, self._never, {}

    def close_extras(self, **kwargs: Any) -> None:
        """Close nothing."""


def still_screens(size: StepSize) -> NDArray[np.uint8]:
    """Return the observations, [B, ...]."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (size.n_envs, *size.shape[-2:]), np.uint8)
    if not size.are_stacks:
        return frames
    return np.ascontiguousarray(np.repeat(frames[:, None], size.shape[0], axis=1))


class DecidedAgent:
    """Returns action, value and log-probability that were made before, as a model's outputs are.

    Args:
        convert: brings an array to where a model would compute it, e.g. `cuda.to_device`; without
            it, results are NumPy's.
        n_actions: number of different actions.
    """

    def __init__(self, convert: Any = None, n_actions: int = N_ACTIONS) -> None:
        self._convert, self._n_actions = convert, n_actions
        self._results: dict[int, Any] = {}

    def results(self, n_envs: int) -> tuple[Any, dict[str, Any]]:
        """Return the action and the rest, for a number of environments."""
        if n_envs not in self._results:
            numbers = np.arange(n_envs)
            arrays = [
                (numbers % self._n_actions).astype(np.int64),
                (numbers / 4).astype(np.float32),
                (-numbers / 8).astype(np.float32),
            ]
            if self._convert is not None:
                arrays = [self._convert(array) for array in arrays]
            action, value, log_prob = arrays
            self._results[n_envs] = action, {"value": value, "log_prob": log_prob}
        return self._results[n_envs]

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, dict[str, Any]]:
        return self.results(len(observation))

    def value(self, observation: Any) -> Any:
        return self.results(len(observation))[1]["value"]
