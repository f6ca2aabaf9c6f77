"""Backend: what a VectorStepper asks of environments that step together, whatever their class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from parllel.cages.values.env_rows import Value

Mask = NDArray[np.bool_]


class Backend(Protocol):
    """Environments in one object. `VectorBackend` and `DeviceBackend` are the two of the package.

    Attributes:
        n_envs: number of environments.
        observation_space, action_space: those of a single environment.
        mode: when the environments reset those whose episode ended.
        resets_by_mask: whether `reset_ended` works.
        goes_on: whether a step goes on after `start`, until `wait`.
        forgets_resets: whether a reset of all environments also cancels the resets that the next
            step would do.
    """

    n_envs: int
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    mode: AutoresetMode
    resets_by_mask: bool
    goes_on: bool
    forgets_resets: bool

    def reset(self, numbers: Sequence[int] | None) -> tuple[Any, Mapping[str, Any]]:
        """Reset all environments, seeded by numbers; return first observations and info."""

    def check_can_be_seeded(self) -> None:
        """Refuse environments that take their seeds only when they are made."""

    def start(self, actions: Value) -> None:
        """Start a step of all environments."""

    def wait(self) -> tuple[Any, NDArray[Any], Mask, Mask, Mapping[str, Any]]:
        """Wait for the step; return observation, reward, terminated, truncated and info."""

    def reset_ended(self, ended: Mask) -> tuple[Any, dict[int, dict[str, Any]]]:
        """Reset the environments of a mask; return their observations and masks of actions."""

    def close(self) -> None:
        """Close the environments."""
