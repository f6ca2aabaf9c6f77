"""Tiny environments whose numbers are all known; worker processes can import them too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Result = tuple[Any, Any, bool, bool, dict[str, Any]]


class Clock(gym.Env[NDArray[np.float32], Any]):
    """Show (number of the episode, number of the step), and pay the number of the step.

    The first step has number 1, and the first episode number 0. Actions change nothing.

    Args:
        length: number of steps in an episode.
        end: the flags that are set at an episode's end: "terminated", "truncated" or "both".
        reward_type: converts the reward, a Python integer, to the type that `step` returns.
        reuses_buffer: whether all observations are the same array, overwritten each time.

    Example:
        >>> env = Clock(length=2)
        >>> observation, info = env.reset()
        >>> env.step(0)[:3]
        (array([0., 1.], dtype=float32), 1.0, False)
        >>> env.step(0)[:3]
        (array([0., 2.], dtype=float32), 2.0, True)
    """

    observation_space = spaces.Box(0, np.inf, (2,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(
        self,
        length: int = 3,
        end: str = "terminated",
        reward_type: Callable[[int], Any] = float,
        reuses_buffer: bool = False,
    ) -> None:
        self._length = length
        self._end = end
        self._reward_type = reward_type
        self._reuses_buffer = reuses_buffer
        self._buffer = np.zeros(2, np.float32)
        self._episode, self._step = -1, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin the next episode."""
        self._episode, self._step = self._episode + 1, 0
        return self._observe(), self._info()

    def step(self, action: object) -> Result:
        """Go on by one step."""
        self._step += 1
        is_end = self._step == self._length
        terminated = is_end and self._end in ("terminated", "both")
        truncated = is_end and self._end in ("truncated", "both")
        return self._observe(), self._reward_type(self._step), terminated, truncated, self._info()

    def _observe(self) -> NDArray[np.float32]:
        self._buffer[:] = self._episode, self._step
        return self._buffer if self._reuses_buffer else self._buffer.copy()

    def _info(self) -> dict[str, Any]:
        """Return `step`, `nested.double`, and `odd` in odd steps only."""
        info = {"step": self._step, "nested": {"double": 2 * self._step}}
        return info | ({"odd": self._step} if self._step % 2 else {})


class Walk(gym.Env[NDArray[np.float64], Any]):
    """Add the action and a random number in each step; end at random, after 4 steps on average.

    Everything is drawn from the generator that `reset(seed=)` seeds. Half of the episodes are
    terminated, half are truncated.

    Example:
        >>> first, second = Walk(), Walk()
        >>> _ = first.reset(seed=0), second.reset(seed=0)
        >>> first.step(1)[1] == second.step(1)[1]
        True
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Discrete(4)

    def __init__(self) -> None:
        self._position = np.zeros(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Begin somewhere else."""
        super().reset(seed=seed)
        self._position = self.np_random.standard_normal(3)
        return self._position.copy(), {"luck": self.np_random.random()}

    def step(self, action: int) -> Result:
        """Move."""
        self._position += action + self.np_random.standard_normal(3)
        reward = float(self._position.sum())
        fate = self.np_random.random()
        info = {"luck": self.np_random.random()}
        return self._position.copy(), reward, fate < 1 / 8, 1 / 8 <= fate < 1 / 4, info

    def get_state(self) -> dict[str, Any]:
        """Return all but the generator, which cages save."""
        return {"position": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._position = state["position"]


class Echo(gym.Env[Any, Any]):
    """Show the action that was taken; at the beginning of an episode, a random one.

    Args:
        space: the space of actions and of observations.
        length: number of steps after which an episode is terminated; it goes on by default.
        overwrites_action: whether the actions, which must be arrays, are set to 0 afterwards.

    Raises:
        ValueError: in `step`, the action is no member of the space.

    Example:
        >>> env = Echo(spaces.Discrete(5))
        >>> _ = env.reset(seed=0)
        >>> env.step(3)[0]
        3
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        length: int | None = None,
        overwrites_action: bool = False,
    ) -> None:
        self.observation_space = copy.deepcopy(space)
        self.action_space = copy.deepcopy(space)
        self._length = length
        self._overwrites_action = overwrites_action
        self._n_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Show a random member of the space."""
        if seed is not None:
            self.observation_space.seed(seed)
        self._n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Result:  # Any: a member of any space
        """Show the action."""
        if not self.action_space.contains(action):
            raise ValueError(f"action: got {action!r}, expected a member of {self.action_space}")
        observation = copy.deepcopy(action)
        if self._overwrites_action:
            action[...] = 0
        self._n_steps += 1
        return observation, 0.0, self._n_steps == self._length, False, {}


class Turns(gym.Env[Any, Any]):
    """Allow one action in each step, by a mask in the observation: 0, 1, 2, 0, ...

    Raises:
        ValueError: in `step`, the action is another one.

    Example:
        >>> env = Turns()
        >>> env.reset()[0]["action_mask"], env.step(0)[0]["action_mask"]
        (array([1, 0, 0], dtype=int8), array([0, 1, 0], dtype=int8))
    """

    observation_space = spaces.Dict({"action_mask": spaces.Box(0, 1, (3,), np.int8)})
    action_space: spaces.Space[Any] = spaces.Discrete(3)

    def __init__(self) -> None:
        self._turn = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin with the first action."""
        self._turn = 0
        return self._observe(), {}

    def step(self, action: Any) -> Result:  # Any: an integer of NumPy or Python
        """Take the action whose turn it is."""
        if action != self._turn:
            raise ValueError(f"action: got {action!r}, expected {self._turn}, as the mask says")
        self._turn = (self._turn + 1) % 3
        return self._observe(), 0.0, False, False, {}

    def _observe(self) -> dict[str, NDArray[np.int8]]:
        return {"action_mask": np.eye(3, dtype=np.int8)[self._turn]}


class Ledger(Clock):
    """Leave a file for each environment that was made and for each that was closed.

    Args:
        folder: the folder of the files `made_*` and `closed_*`.
        fail_at: the number of the environment, from 1 on, that raises an error when it is made.
        action_space: the space of actions, if it is not that of `Clock`.

    Raises:
        OSError: this environment is the one that fails.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Ledger(Path(folder)).close()
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['closed_1', 'made_1']
    """

    def __init__(
        self,
        folder: Path,
        fail_at: int | None = None,
        action_space: spaces.Space[Any] = Clock.action_space,
    ) -> None:
        super().__init__()
        self.action_space = action_space
        self._folder = folder
        number = 1 + sum(1 for _ in folder.glob("made_*"))
        if number == fail_at:
            raise OSError(f"environment {number} can't be made")
        self._number = number
        (folder / f"made_{number}").touch()

    def close(self) -> None:
        """Leave the second file.

        Raises:
            RuntimeError: it was closed before.
        """
        path = self._folder / f"closed_{self._number}"
        if path.exists():
            raise RuntimeError(f"environment {self._number} is closed twice")
        path.touch()
