"""MaskInObservation: the mask of allowed actions goes from the info into the observation."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from parllel.cages.values.spaces import ACTION_MASK, n_choices

_Observation = dict[str, Any]  # Any: that of the environment


class MaskInObservation(gym.Wrapper[_Observation, Any, Any, Any]):
    """Put the mask of allowed actions, which the info holds, beside the observation.

    Observations become `{"observation": ..., "action_mask": ...}`, with the space
    `Dict(observation=<that of env>, action_mask=MultiBinary(n))`. So the mask is sampled, stored
    and learned from like any observation, and agents of `torch.agents` choose allowed actions only.
    The info's entry is taken out. Of a vector environment, each single one is wrapped before:
    `SyncVectorEnv([lambda: MaskInObservation(gym.make(...))] * 8)`.

    After a termination nothing is chosen any more: where the info then has no mask, all actions
    count as allowed.

    Args:
        env: an environment with actions of Discrete(n), MultiBinary(k) or MultiDiscrete(nvec).
        name: name of the info's entry. It holds n entries of bool, or 0 and 1, and for several
            choices those of all of them, one after the other: n = sum(nvec), and 2 for each bit.

    Raises:
        TypeError: the environment's actions are others.

    Example:
        >>> class Shrinking(gym.Env):  # the last action is allowed at first, and never again
        ...     observation_space, action_space = spaces.Box(0, 9), spaces.Discrete(3)
        ...     def reset(self, *, seed=None, options=None):
        ...         return np.zeros(1, np.float32), {"action_mask": [0, 0, 1]}
        ...     def step(self, action):
        ...         return np.ones(1, np.float32), 0.0, False, False, {"action_mask": [1, 1, 0]}
        >>> env = MaskInObservation(Shrinking())
        >>> observation, info = env.reset()
        >>> observation["action_mask"], info
        (array([0, 0, 1], dtype=int8), {})
        >>> env.step(2)[0]["observation"]
        array([1.], dtype=float32)
    """

    def __init__(self, env: gym.Env[Any, Any], name: str = ACTION_MASK) -> None:
        super().__init__(env)
        self._name = name
        self._n_actions = sum(n_choices(env.action_space))
        mask = spaces.MultiBinary(self._n_actions)
        self.observation_space = spaces.Dict(observation=env.observation_space, action_mask=mask)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[_Observation, dict[str, Any]]:
        """Reset the environment.

        Raises:
            TypeError, ValueError: the info has no mask, or one that is not as the class says.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        return self._beside(observation, info)

    def step(
        self, action: Any
    ) -> tuple[_Observation, SupportsFloat, bool, bool, dict[str, Any]]:  # Any: as gymnasium's
        """Step the environment.

        Raises:
            TypeError, ValueError: the info has no mask, or one that is not as the class says.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated and self._name not in info:
            info = {**info, self._name: np.ones(self._n_actions, np.int8)}
        observation, info = self._beside(observation, info)
        return observation, reward, terminated, truncated, info

    def _beside(
        self, observation: Any, info: dict[str, Any]
    ) -> tuple[_Observation, dict[str, Any]]:
        others = {name: entry for name, entry in info.items() if name != self._name}
        return {"observation": observation, ACTION_MASK: self._checked(info)}, others

    def _checked(self, info: dict[str, Any]) -> NDArray[np.int8]:
        if self._name not in info:
            raise ValueError(
                f"info: there is no {self._name!r} among {sorted(info)}, expected the mask of"
                " allowed actions; give its name to MaskInObservation(env, name=)"
            )
        mask = np.asarray(info[self._name])
        if mask.dtype.kind not in "biu":
            raise TypeError(f"info.{self._name}: got {mask.dtype}, expected bool or integers")
        if mask.shape != (self._n_actions,):
            raise ValueError(
                f"info.{self._name}: shape {mask.shape}, expected ({self._n_actions},), an entry"
                f" for each action of {self.env.action_space}"
            )
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"info.{self._name}: got {mask.tolist()}, expected 0 and 1")
        return mask.astype(np.int8)
