"""TrajInfo: what is summed up along one episode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrajInfo:
    """Length and returns of one episode; subclass it to sum up more.

    A cage makes one at each reset and calls `step` for each environment step. An episode that
    never took a step is not reported.

    Args:
        discount: per step, of `discounted_return`.
    """

    discount: float = 1.0
    length: int = field(default=0, init=False)
    episode_return: float = field(default=0.0, init=False)
    discounted_return: float = field(default=0.0, init=False)
    _weight: float = field(default=1.0, init=False, repr=False, compare=False)

    def step(
        self,
        observation: Any,
        action: Any,
        reward: Any,
        terminated: bool,
        truncated: bool,
        info: dict[str, Any],
    ) -> None:
        """Take in one step.

        Args:
            observation: what the environment returned, before any reset.
            action, reward, terminated, truncated, info: of the same step.
        """
        reward = float(reward)  # a sum in float32 would lose digits over a long episode
        self.length += 1
        self.episode_return += reward
        self.discounted_return += self._weight * reward
        self._weight *= self.discount

    def metrics(self) -> dict[str, float]:
        """Return the numbers to be averaged over episodes and logged, by name."""
        return {
            "episode_length": float(self.length),
            "episode_return": float(self.episode_return),
            "episode_discounted_return": float(self.discounted_return),
        }
